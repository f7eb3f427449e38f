"""BERT models: checked configs, the one model loader, logits only at the masked positions, floating-point operations."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from pretraining.config import TrainingArguments
from pretraining.corpus.files import CODE_KEYS, read_json, require_file
from pretraining.distillation.cpu import ATTENTION
from pretraining.distillation.gpus import bf16_peak
from pretraining.utils import UserError, first_line

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TIED_WEIGHTS = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")  # state dicts may leave them out
UNUSED_WEIGHTS = ("position_ids", "pooler", "seq_relationship")  # parts of a name; masked-LM training has no use for them
MAX_LAYERS, MAX_LABELS, MAX_PARAMETERS = 1000, 1_000_000, 10**10  # of a config; more would only fill the memory

# Load reports and progress bars of transformers are of no use here; our errors name what is missing.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def masked_lm_outputs(
    model: BertForMaskedLM, batch: dict[str, torch.Tensor], hidden_states: bool = False, attentions: bool = False, logits: bool = True
) -> Any:
    """Runs the encoder over the whole batch and the vocabulary head only over the masked positions.

    Args:
        batch: ``input_ids`` (batch, length) int64, ``masked_positions`` (batch, max_masked) int64, and where rows are padded
            ``attention_mask`` (batch, length) int64.

    Returns:
        a MaskedLMOutput with, if asked for, ``logits`` (batch * max_masked, vocabulary), ``hidden_states`` (layers + 1 of (batch, length, hidden)) and
        ``attentions`` (layers of (batch, heads, length, length)).
    """
    encoded = model.bert(
        batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        token_type_ids=torch.zeros_like(batch["input_ids"][:1]),  # one row for all: its gradient is one sum, not an atomic add per token
        output_hidden_states=hidden_states,
        output_attentions=attentions,
    )
    if not logits:
        return MaskedLMOutput(hidden_states=encoded.hidden_states, attentions=encoded.attentions)
    states = encoded.last_hidden_state
    picked = states.gather(1, batch["masked_positions"].unsqueeze(-1).expand(-1, -1, states.size(-1)))
    return MaskedLMOutput(logits=model.cls(picked.flatten(0, 1)), hidden_states=encoded.hidden_states, attentions=encoded.attentions)


# ---------------------------------------------------------------- configs


def read_config(path: str | Path, what: str) -> BertConfig:
    """Reads a BERT config JSON and checks what would fail only when the model is built, called or saved."""
    values = {key: value for key, value in read_json(path, what).items() if key.lstrip("_") not in CODE_KEYS}
    if values.get("model_type", "bert") != "bert":
        raise UserError(f"{path}: {what} is of type {values['model_type']}, not bert")
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if type(values.get(key)) is not int or values[key] < 1:
            raise UserError(f"{path}: {what} has no whole number above 0 for {key}")
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UserError(
            f"{path}: hidden_size {values['hidden_size']} is not divisible by num_attention_heads {values['num_attention_heads']}"
        )
    _check_outputs(values, path, what)
    for key, most in (("num_hidden_layers", MAX_LAYERS), ("num_labels", MAX_LABELS)):  # the library makes an object for each
        if type(values.get(key, 0)) is not int or values.get(key, 0) > most:
            raise UserError(f"{path}: {what} needs a whole number up to {most} for {key}")
    try:
        config = BertConfig(**values)
        with torch.device("meta"):  # only shapes: checks that the model can be built
            parameters = BertForMaskedLM(config).num_parameters()
    except Exception as error:  # the library checks types with its own exceptions
        raise UserError(f"{path}: no BERT model can be built from {what} ({type(error).__name__}: {error})") from None
    for key in ("max_position_embeddings", "type_vocab_size"):
        if getattr(config, key) < 1:
            raise UserError(f"{path}: {what} has no whole number above 0 for {key}")
    for key in ("initializer_range", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(config, key) < math.inf:
            raise UserError(f"{path}: {what} has no number of 0 or above for {key}")
    if parameters > MAX_PARAMETERS:
        raise UserError(f"{path}: {what} asks for {parameters:,} parameters; at most {MAX_PARAMETERS:,} are possible")
    return config


def _check_outputs(values: dict[str, Any], path: str | Path, what: str) -> None:
    """Checks the keys of a config that say how the model is called; the calls of this project give all but these."""
    for key in ("output_attentions", "output_hidden_states"):
        if type(values.get(key, False)) is not bool:
            raise UserError(f"{path}: {what} needs true or false for {key}")
    for key, default, others in (("return_dict", True, [None]), ("chunk_size_feed_forward", 0, [])):
        if values.get(key, default) not in [default, *others]:
            raise UserError(f"{path}: {what} has another {key} than {json.dumps(default)}, with which it cannot be trained; remove it")


def require_model_directory(directory: str | Path, what: str) -> BertConfig:
    """Checks that a directory holds the config and the weights of a BERT model; returns the config."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory ({what}; a local model directory is needed)")
    config = read_config(directory / "config.json", f"the config of {what}")
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{directory}: {what} has no weights; expected model.safetensors or pytorch_model.bin")
    return config


# ---------------------------------------------------------------- loading


def load_reporting_missing(
    model_class: Any, directory: str | Path, what: str, *, attentions: bool = False, **options: Any
) -> tuple[Any, list[str]]:
    """Loads a model in float32, with eager attention where attentions are needed, else SDPA.

    Args:
        options: for ``from_pretrained``.

    Returns:
        the model; the names of its weights that the directory lacks or has in another shape, sorted. Those have random values.

    Raises:
        UserError: the weights are unreadable, truncated or unsafe.
    """
    try:
        model, info = model_class.from_pretrained(
            str(directory),
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager" if attentions else "sdpa",
            **options,
        )
    except Exception as error:  # the library raises a different exception for each fault
        raise UserError(f"{directory}: the weights of {what} cannot be loaded ({first_line(error)})") from None
    return model, sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])


def load_model(
    model_class: Any, directory: str | Path, what: str, *, attentions: bool = False, optional: tuple[str, ...] = (), **options: Any
) -> Any:
    """Loads a model; weights that are missing or do not fit are an error, never random numbers.

    Args:
        optional: prefixes of the names of weights that may be missing.

    Raises:
        UserError: as :func:`load_reporting_missing`, or a weight is missing.
    """
    model, missing = load_reporting_missing(model_class, directory, what, attentions=attentions, **options)
    needed = [name for name in missing if not name.startswith(optional)] if optional else missing
    if needed:
        lacking = f"the weights of {what} lack {len(needed)} tensors or have them in another shape, first {needed[0]}"
        advice = "; without soft labels (--kd_weight 0) a teacher needs no masked-LM head" if what == "the teacher" else ""
        raise UserError(f"{directory}: {lacking}{advice if needed[0].startswith('cls.') else ''}")
    return model


def load_masked_lm(directory: str | Path, what: str, attentions: bool = False, needs_head: bool = True) -> BertForMaskedLM:
    """Loads a model with its masked-LM head; if that is not needed and missing, it is random."""
    config = read_config(Path(directory) / "config.json", f"the config of {what}")
    return load_model(BertForMaskedLM, directory, what, config=config, attentions=attentions, optional=() if needs_head else ("cls.",))


def build_student(config: BertConfig, weights: str | Path | None, attentions: bool = False) -> BertForMaskedLM:
    """Builds a student with random weights, or with those of a model directory or state-dict file, which must all fit."""
    config = copy.deepcopy(config)
    config.output_attentions = False  # calls ask for them; a model that could not return them could not be saved
    model = BertForMaskedLM(config)
    model.set_attn_implementation("eager" if attentions else "sdpa")
    if weights is None:
        return model
    if Path(weights).is_dir():
        require_model_directory(weights, "the student's first weights")
        state = load_masked_lm(weights, "the student's first weights").state_dict()
    else:
        state = read_state_dict(weights)
    expected = model.state_dict()
    for name, tensor in state.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise UserError(
                f"{weights}: {name} has the shape {tuple(tensor.shape)}, the student config wants {tuple(expected[name].shape)}; "
                "give the weights' own config as --student_config"
            )
    result = model.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if name not in TIED_WEIGHTS]
    unexpected = [name for name in result.unexpected_keys if not any(part in name for part in UNUSED_WEIGHTS)]
    if missing or unexpected:
        raise UserError(
            f"{weights}: does not fit the student config; missing {missing[:1] or 'nothing'}, left over {unexpected[:1] or 'nothing'}"
        )
    return model


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a .safetensors file or a torch.save file of tensors; never runs code from it."""
    require_file(path, "a state dict")
    try:
        state = load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a state dict, or a pickle that wants more than tensors
        raise UserError(f"{path}: cannot be read as a state dict of tensors ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path}: is no state dict; expected names with a tensor each")
    return state


# ---------------------------------------------------------------- preparing for training


def half_dtype(args: TrainingArguments) -> torch.dtype | None:
    """The 16-bit type that ``--bf16`` or ``--fp16`` asks for; None in float32."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def prepare_models(
    student: BertForMaskedLM,
    teacher: BertForMaskedLM | None,
    *,
    device: torch.device,
    half: torch.dtype | None,
    compiled: bool,
    cpu_kernels: bool = True,
) -> None:
    """Moves both models to the device and freezes the teacher; changes the models themselves.

    Args:
        half: the teacher's dtype; None leaves it in float32. The student stays in float32 and computes under autocast.
        compiled: torch.compile will run over the models; the attention of ``cpu.py`` cannot be traced.
        cpu_kernels: on a CPU, use the attention of ``cpu.py``. It returns no attention probabilities.
    """
    student.to(device)
    if teacher is not None:
        teacher.to(device, half).eval().requires_grad_(False)
    if device.type == "cpu" and cpu_kernels and not compiled:
        for model in (student, teacher):
            if model is not None:
                model.set_attn_implementation(ATTENTION)


# ---------------------------------------------------------------- floating-point operations


def flops_per_sample(config: BertConfig, length: int, masked: int) -> float:
    """Floating-point operations of one forward pass over one sample, with logits at ``masked`` positions.

    Counts only matrix products; a multiply-add is two operations.
    """
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size + 2 * length * config.hidden_size
    head = config.hidden_size**2 + config.hidden_size * config.vocab_size
    return 2.0 * (config.num_hidden_layers * layer * length + head * masked)


def training_flops_per_sample(
    student: BertConfig, teacher: BertConfig | None, projections: nn.Module, length: int, mlm_probability: float
) -> float:
    """Floating-point operations of one training sample: three forward passes' worth for what is trained, one for the teacher."""
    masked = max(1, round(mlm_probability * length))
    trained = flops_per_sample(student, length, masked)
    trained += sum(2.0 * length * weight.numel() for weight in projections.parameters() if weight.dim() == 2)
    return 3 * trained + (flops_per_sample(teacher, length, masked) if teacher is not None else 0)


def flops_utilization(flops_per_second: float, device: torch.device) -> float | None:
    """MFU: the share of the GPU's dense bfloat16 peak; None on a CPU and on a GPU whose peak is not known."""
    if device.type != "cuda":
        return None
    peak = bf16_peak(torch.cuda.get_device_name(device))
    return flops_per_second / peak if peak else None
