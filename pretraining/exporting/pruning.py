"""A model without the embeddings of tokens that are no longer in its vocabulary."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from pretraining.corpus.files import atomic_directory, disk_full_as_user_error, read_json, write_json
from pretraining.corpus.vocabulary import save_pruned_tokenizer
from pretraining.distillation.checkpoint import model_sha256
from pretraining.distillation.modeling import TIED_WEIGHTS, read_state_dict, require_model_directory
from pretraining.utils import UserError

MADE_FROM = "made_from.json"
CARRIED = ("task.json",)  # what a fine-tuned model says of its task
# The ends of the names of tensors with a row, or a number, for each token.
VOCABULARY_ROWS = ("embeddings.word_embeddings.weight", *TIED_WEIGHTS, "cls.predictions.bias")
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")  # of a config


class Model(NamedTuple):
    """A model to prune.

    Attributes:
        config: the JSON object of its config.json, unchanged.
        state: its tensors by name, without those that are tied to another.
    """

    directory: Path
    config: dict[str, Any]
    state: dict[str, torch.Tensor]

    @property
    def vocab_size(self) -> int:
        """Rows of the word embeddings; a model may have more than the vocabulary has tokens."""
        return self.config["vocab_size"]

    @property
    def token_ids(self) -> set[int]:
        """The ids of tokens that the config names."""
        return {self.config[key] for key in TOKEN_IDS if type(self.config.get(key)) is int}


def read_model(directory: Path) -> Model:
    """Reads a model with its weights.

    Raises:
        UserError: not a model directory, weights in several files, or tensors that do not have a row for each token.
    """
    what = "the model to prune"
    tied = require_model_directory(directory, what).tie_word_embeddings
    config = read_json(directory / "config.json", f"the config of {what}")
    found = [directory / name for name in ("model.safetensors", "pytorch_model.bin") if (directory / name).is_file()]
    if not found:
        raise UserError(f"{directory}: the weights of {what} are in several files; save the model again, in one file")
    state = read_state_dict(found[0])
    if tied and TIED_WEIGHTS[1] in state:  # files of older libraries may have the bias under this name only
        state.setdefault("cls.predictions.bias", state[TIED_WEIGHTS[1]])
    state = {name: tensor for name, tensor in state.items() if not (tied and name in TIED_WEIGHTS)}
    rows = {name: tensor.shape[:1] for name, tensor in state.items() if name.endswith(VOCABULARY_ROWS)}
    if not any(name.endswith(VOCABULARY_ROWS[0]) for name in rows):
        raise UserError(f"{found[0]}: has no {VOCABULARY_ROWS[0]}; is this a BERT model?")
    for name, size in rows.items():
        if size != (config["vocab_size"],):
            raise UserError(f"{found[0]}: {name} has no row for each of the {config['vocab_size']} tokens of config.json")
    return Model(directory, config, state)


def prune_config(config: dict[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """The config of a model with the kept tokens; their ids in it are the new ones."""
    new_id = {int(old): new for new, old in enumerate(kept)}
    ids = {key: new_id[config[key]] for key in TOKEN_IDS if config.get(key) in new_id}
    return {**config, "vocab_size": len(kept), **ids}


def prune_state(state: dict[str, torch.Tensor], kept: np.ndarray) -> dict[str, torch.Tensor]:
    """The tensors with the rows of the kept tokens; all other tensors are unchanged, and so are all dtypes."""
    index = torch.from_numpy(kept)
    return {name: tensor[index] if name.endswith(VOCABULARY_ROWS) else tensor.contiguous() for name, tensor in state.items()}


def save_pruned(model: Model, tokenizer: Any, kept: np.ndarray, target: Path) -> int:
    """Writes the model with the kept tokens as a directory that loads as the model's own does.

    Args:
        kept: from :func:`pretraining.corpus.vocabulary.choose_tokens`.

    Returns:
        the number of its parameters.
    """
    state = prune_state(model.state, kept)
    with atomic_directory(target) as partial, disk_full_as_user_error(target):
        write_json(partial / "config.json", prune_config(model.config, kept))
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
        save_pruned_tokenizer(tokenizer, kept, partial)
        for name in CARRIED:
            if (model.directory / name).is_file():
                (partial / name).write_bytes((model.directory / name).read_bytes())
        write_json(partial / MADE_FROM, {"model": model_sha256(model.directory), "vocab_size": model.vocab_size})
    return count_parameters(state)


def count_parameters(state: dict[str, torch.Tensor]) -> int:
    """The numbers in all tensors but those of integers, which are no weights."""
    return sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
