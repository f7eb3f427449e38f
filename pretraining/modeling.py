"""BERT masked-LM that computes vocabulary logits at the masked positions alone, and the losses over them."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput
from utils import UserError, first_line, read_json, require_file

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CODE_KEYS = ("auto_map", "trust_remote_code", "attn_implementation", "_attn_implementation")  # would name code from elsewhere
DENSE_BF16_PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # the first that fits; datasheets


def masked_lm_outputs(model: BertForMaskedLM, batch: dict, hidden_states: bool = False, attentions: bool = False) -> MaskedLMOutput:
    """Runs the encoder over the whole batch and the vocabulary head over the masked positions alone.

    Args:
        batch: ``input_ids`` (batch, length) int64, ``masked_positions`` (batch, max_masked) int64, and where rows are padded
            ``attention_mask`` (batch, length) int64.

    Returns:
        ``logits`` (batch * max_masked, vocabulary); if asked for, ``hidden_states`` (layers + 1 of (batch, length, hidden)) and
        ``attentions`` (layers of (batch, heads, length, length)).
    """
    encoded = model.bert(
        batch["input_ids"], attention_mask=batch.get("attention_mask"), output_hidden_states=hidden_states, output_attentions=attentions
    )
    states = encoded.last_hidden_state
    picked = states.gather(1, batch["masked_positions"].unsqueeze(-1).expand(-1, -1, states.size(-1)))
    return MaskedLMOutput(logits=model.cls(picked.flatten(0, 1)), hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class PickedLogits(NamedTuple):
    """Logits at the masked positions, as the adaptors hand them through TextBrewer's compute_loss to the KD loss.

    Attributes:
        logits: (positions, vocabulary).
        used: (positions,) bool; unused places fill a row up to the fixed number.
        count: scalar; the step's used positions per micro-batch, over all processes: what a mean over the global batch divides by.
    """

    logits: torch.Tensor
    used: torch.Tensor
    count: torch.Tensor


def kd_ce_loss(student: PickedLogits, teacher: PickedLogits, temperature: float) -> torch.Tensor:
    """Cross-entropy with the teacher's soft targets, mean over the used positions; no T² factor.

    The same value as ``textbrewer.losses.kd_ce_loss`` over the masked positions of full logits (Hinton et al. 2015).
    """
    targets = F.softmax(teacher.logits.float() / temperature, dim=-1)
    losses = F.cross_entropy(student.logits.float() / temperature, targets, reduction="none")
    return (losses * student.used).sum() / student.count


def masked_lm_loss(student: PickedLogits, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the masked tokens (Devlin et al. 2019), mean over the used positions; labels (positions,) int64."""
    return F.cross_entropy(student.logits.float(), labels, ignore_index=-100, reduction="sum") / student.count


def adaptor(batch: dict, outputs: MaskedLMOutput) -> dict:
    """TextBrewer's adaptor for both models; the match losses are means over all positions, as in the published recipe."""
    labels = batch["labels"].flatten()
    picked = PickedLogits(outputs.logits, labels >= 0, batch["mean_masked"])
    return {"logits": [picked], "hidden": outputs.hidden_states, "attention": outputs.attentions}


def masked_lm_adaptor(batch: dict, outputs: MaskedLMOutput) -> dict:
    """The adaptor of a student without a teacher: masked-LM is its only loss."""
    picked = adaptor(batch, outputs)["logits"][0]
    return {"losses": [masked_lm_loss(picked, batch["labels"].flatten())]}


# ---------------------------------------------------------------- loading


def read_config(path: str | Path, what: str) -> BertConfig:
    """Reads a BERT config JSON and checks what would fail only when the model is built."""
    values = {key: value for key, value in read_json(path, what).items() if key not in CODE_KEYS}
    if values.get("model_type", "bert") != "bert":
        raise UserError(f"{path}: {what} is of type {values['model_type']}, not bert")
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if type(values.get(key)) is not int or values[key] < 1:
            raise UserError(f"{path}: {what} has no whole number above 0 for {key}")
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UserError(
            f"{path}: hidden_size {values['hidden_size']} is not divisible by num_attention_heads {values['num_attention_heads']}"
        )
    try:
        config = BertConfig(**values)
        with torch.device("meta"):  # no weights: a check that the model can be built
            BertForMaskedLM(config)
    except Exception as error:  # the library checks types with its own exceptions
        raise UserError(f"{path}: no BERT model can be built from {what} ({type(error).__name__}: {error})") from None
    for key in ("max_position_embeddings", "type_vocab_size"):
        if getattr(config, key) < 1:
            raise UserError(f"{path}: {what} has no whole number above 0 for {key}")
    return config


def require_model_directory(directory: str | Path, what: str) -> BertConfig:
    """Checks that a directory holds a BERT model's config and weights; returns the config."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory ({what}; a local model directory is needed)")
    config = read_config(directory / "config.json", f"the config of {what}")
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{directory}: {what} has no weights; expected model.safetensors or pytorch_model.bin")
    return config


def load_masked_lm(directory: str | Path, what: str, attentions: bool = False) -> BertForMaskedLM:
    """Loads a model with its masked-LM head; weights that are missing or do not fit are an error, never random numbers."""
    config = read_config(Path(directory) / "config.json", f"the config of {what}")
    config._attn_implementation = "eager" if attentions else "sdpa"
    try:
        model, info = BertForMaskedLM.from_pretrained(str(directory), config=config, output_loading_info=True, dtype=torch.float32)
    except Exception as error:  # unreadable, truncated or unsafe weights: the library raises a different exception for each
        raise UserError(f"{directory}: the weights of {what} cannot be loaded ({error})") from None
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing:
        raise UserError(f"{directory}: the weights of {what} lack {len(missing)} tensors or have them in another shape, first {missing[0]}")
    return model


def build_student(config: BertConfig, weights: str | None, attentions: bool = False) -> BertForMaskedLM:
    """A student with random weights, or with those of a model directory or state-dict file, which must all fit."""
    config._attn_implementation = "eager" if attentions else "sdpa"
    model = BertForMaskedLM(config)
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
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if name not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")]  # tied
    unexpected = [name for name in unexpected if "position_ids" not in name and "pooler" not in name and "seq_relationship" not in name]
    if missing or unexpected:
        raise UserError(
            f"{weights}: does not fit the student config; missing {missing[:1] or 'nothing'}, left over {unexpected[:1] or 'nothing'}"
        )
    return model


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a .safetensors file or a torch.save file of tensors; never runs code from it."""
    from safetensors.torch import load_file

    require_file(path, "a state dict")
    try:
        state = load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a state dict, or a pickle that wants more than tensors
        raise UserError(f"{path}: cannot be read as a state dict of tensors ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds something else than a state dict, names with a tensor each")
    return state


def flops_per_sample(config: BertConfig, length: int, masked: int) -> float:
    """Floating-point operations of one forward over one sample: matrix products alone, two a multiply-add; logits at ``masked`` positions."""
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size + 2 * length * config.hidden_size
    head = config.hidden_size**2 + config.hidden_size * config.vocab_size
    return 2.0 * (config.num_hidden_layers * layer * length + head * masked)
