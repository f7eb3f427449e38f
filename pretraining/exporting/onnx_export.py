"""Turns a BERT model into an ONNX file, and an ONNX file into one with 8-bit weights."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification, BertModel

from pretraining.distillation.modeling import load_model, load_reporting_missing, require_model_directory
from pretraining.utils import UserError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
FINE_TUNED: dict[str, Any] = {
    "BertForSequenceClassification": BertForSequenceClassification,
    "BertForQuestionAnswering": BertForQuestionAnswering,
    "BertForTokenClassification": BertForTokenClassification,
}
OUTPUTS = {
    "BertForSequenceClassification": ("logits",),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
    "BertForTokenClassification": ("logits",),
}


class ExportModule(nn.Module):
    """A model as a function from the three inputs to a tuple of named outputs; in eval mode.

    Attributes:
        model: a BertModel or a fine-tuned model.
        outputs: the names of the outputs.
    """

    def __init__(self, model: Any, outputs: tuple[str, ...]):
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.eval()

    def forward(self, input_ids, attention_mask, token_type_ids) -> tuple[torch.Tensor, ...]:
        """All inputs: (batch, length) int64."""
        results = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(results[name] for name in self.outputs)


def load_for_export(directory: Path) -> ExportModule:
    """Loads the encoder or the fine-tuned model that the config names, in float32 with eager attention.

    Raises:
        UserError: not a model directory, another architecture, or weights that are missing or cannot be read.
    """
    what = "the model to export"
    config = require_model_directory(directory, what)
    architecture = (config.architectures or ["BertModel"])[0]
    if architecture in FINE_TUNED:
        model = load_model(FINE_TUNED[architecture], directory, what, attentions=True)
        return ExportModule(model, OUTPUTS[architecture])
    if architecture not in ENCODERS:
        raise UserError(f"{directory}: is a {architecture}; export.py knows {', '.join((*ENCODERS, *FINE_TUNED))}")
    _, missing = load_reporting_missing(BertModel, directory, what)
    has_pooler = not any(name.startswith("pooler.") for name in missing)  # masked-LM training has none
    model = load_model(BertModel, directory, what, attentions=True, add_pooling_layer=has_pooler)
    return ExportModule(model, ("last_hidden_state", "pooler_output") if has_pooler else ("last_hidden_state",))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the advice of exporter and quantiser to developers off the screen."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@quiet()
def export_onnx(module: ExportModule, path: Path) -> None:
    """Writes the model as one ONNX file for any batch and length.

    Uses the graph of torch.export: the older tracing exporter builds today's attention mask wrongly, without an error.
    """
    input_ids = torch.ones(2, 9, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=module.model.config.max_position_embeddings)}
    program: Any = torch.onnx.export(
        module,
        (input_ids, attention_mask, torch.zeros_like(input_ids)),
        input_names=INPUTS,
        output_names=module.outputs,
        dynamic_shapes={name: shape for name in INPUTS},
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # source lines and paths of this machine
    program.save(str(path), external_data=False)


@quiet()
def quantise(source: Path, target: Path) -> None:
    """Writes a copy with 8-bit weights, one scale per column; activations are quantised while the model runs.

    ``reduce_range`` uses 7 of the 8 bits: CPUs without VNNI would otherwise overflow 16-bit sums without an error.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # stored shapes, which onnxruntime 1.23 compares with the weights that it transposes
    quantize_dynamic(model, str(target), per_channel=True, reduce_range=True)


def add_metadata(path: Path, module: ExportModule) -> None:
    """Notes in an ONNX file what it takes, and what it was made for and compared with: ``input_shapes``, ``opset``, ``onnxruntime``."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    shapes = f"batch x length, both free, length at most {module.model.config.max_position_embeddings}"
    onnx.helper.set_model_props(model, {"input_shapes": shapes, "opset": str(opset), "onnxruntime": onnxruntime.__version__})
    onnx.save(model, path)
