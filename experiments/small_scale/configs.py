"""The configs of the experiment's models, the size of their encoders, and the machine that they are trained on."""

import platform
from pathlib import Path

import torch
import transformers
from transformers import BertConfig, BertModel

from experiments.small_scale.settings import SETTINGS_FILE, Shape
from pretraining.corpus.files import write_json
from pretraining.distillation.modeling import read_config
from pretraining.reporting.machine import device_name
from pretraining.utils import UserError

LARGEST_DIFFERENCE = 0.03  # of the encoders' parameters
COMPARED = ("narrow_deep", "wide_shallow")


def write_configs(shapes: dict[str, Shape], vocabulary_size: int, positions: int, output_dir: Path) -> None:
    """Writes ``NAME.json`` for each shape, and prints the encoder sizes of the two that are compared.

    Raises:
        UserError: the two encoders differ by more than 3 %.
    """
    for name, shape in shapes.items():
        config = {
            "model_type": "bert",
            "vocab_size": vocabulary_size,
            "num_hidden_layers": shape.layers,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.ffn,
            "num_attention_heads": shape.heads,
            "max_position_embeddings": positions,
        }
        write_json(output_dir / f"{name}.json", config)
    narrow_deep, wide_shallow = (encoder_parameters(read_config(output_dir / f"{name}.json", "a student's config")) for name in COMPARED)
    difference = wide_shallow / narrow_deep - 1
    print(f"encoders: narrow-deep {narrow_deep:,}, wide-shallow {wide_shallow:,} parameters ({difference:+.2%})")
    if abs(difference) > LARGEST_DIFFERENCE:
        raise UserError(
            f"{SETTINGS_FILE}: the encoders of narrow_deep_shape and wide_shallow_shape differ by {difference:+.1%}, "
            f"more than {LARGEST_DIFFERENCE:.0%}; change one of them"
        )


def encoder_parameters(config: BertConfig) -> int:
    """The number of parameters in the Transformer layers, without embeddings, pooler and head."""
    with torch.device("meta"):  # shapes only, no memory
        return sum(parameter.numel() for parameter in BertModel(config).encoder.parameters())


def write_machine(scale: str, path: Path) -> None:
    """Writes what the experiment runs on.

    Raises:
        UserError: the scale needs a GPU and there is none.
    """
    if scale == "gpu" and not torch.cuda.is_available():
        raise UserError("--scale gpu: torch finds no GPU; --scale dry runs every stage on the CPU")
    machine = {
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(path, machine)
