"""The published table of model sizes and speeds, figures as published; the configs of its students."""

from pathlib import Path
from typing import NamedTuple

_CONFIGS = Path(__file__).resolve().parents[1] / "distill_configs"
STUDENT_CONFIGS = {
    "RBT6 (KD)": _CONFIGS / "distill_rbt6.json",
    "RBT3": _CONFIGS / "distill_rbt3.json",
    "RBT4-H312": _CONFIGS / "distill_rbt4_312.json",
    "MiniRBT-H256": _CONFIGS / "MiniRBT-h256.json",
    "MiniRBT-H288": _CONFIGS / "MiniRBT-h288.json",
}


class PublishedModel(NamedTuple):
    """One row of the published table.

    Attributes:
        shape: layers/hidden size/feed-forward size/heads.
        parameters, without_embeddings: in millions; the first counts the embeddings too.
        speedup: relative to RoBERTa.
    """

    shape: str
    parameters: str
    without_embeddings: str
    speedup: str


PUBLISHED = {
    "RoBERTa": PublishedModel(shape="12/768/3072/12", parameters="102.3M", without_embeddings="85.7M", speedup="1×"),
    "RBT6 (KD)": PublishedModel(shape="6/768/3072/12", parameters="59.76M", without_embeddings="43.14M", speedup="1.7×"),
    "RBT3": PublishedModel(shape="3/768/3072/12", parameters="38.5M", without_embeddings="21.9M", speedup="2.8×"),
    "RBT4-H312": PublishedModel(shape="4/312/1200/12", parameters="11.4M", without_embeddings="4.7M", speedup="6.8×"),
    "MiniRBT-H256": PublishedModel(shape="6/256/1024/8", parameters="10.4M", without_embeddings="4.8M", speedup="6.8×"),
    "MiniRBT-H288": PublishedModel(shape="6/288/1152/8", parameters="12.3M", without_embeddings="6.1M", speedup="5.7×"),
}
UNPUBLISHED = PublishedModel(shape="–", parameters="–", without_embeddings="–", speedup="–")


def published(name: str) -> PublishedModel:
    """The published figures of a model, or dashes."""
    return PUBLISHED.get(name, UNPUBLISHED)
