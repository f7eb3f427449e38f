"""Rows -> training batches: the order of the samples, the split of the global batch, the loader."""

import signal
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pretraining.corpus.masking import WholeWordMasker
from pretraining.utils import STOP_SIGNALS


class TrainingBatches:
    """The micro-batches of a run, by their number: an endless map-style dataset.

    The samples form one endless sequence: epoch after epoch, each in its own random order. Optimizer step ``t`` (from 0) takes samples
    ``t * global_batch`` to ``(t + 1) * global_batch``, for every split of these into processes and micro-batches.

    Args:
        dataset: from ``shards.load_shards``; its rows are full.
        seed: decides the order.
        train_batch_size: samples of an optimizer step and process.
        micro_batches: forward passes of an optimizer step.
        rank, world_size: this process and the number of processes.
    """

    def __init__(
        self,
        dataset: Any,
        masker: WholeWordMasker,
        seed: int,
        train_batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset, self.masker, self.seed = dataset, masker, seed
        self.micro_batches, self.micro_batch_size = micro_batches, train_batch_size // micro_batches
        self.first, self.global_batch = rank * train_batch_size, train_batch_size * world_size
        self.orders: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Micro-batch ``number`` of this process, counted from the start of the run; see :meth:`WholeWordMasker.__call__`."""
        step, micro_batch = divmod(number, self.micro_batches)
        start = step * self.global_batch + self.first + micro_batch * self.micro_batch_size
        epochs, indices = self.examples(start, self.micro_batch_size)
        return masked_batch(self.dataset, self.masker, epochs, indices)

    def examples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices into the dataset), both (count,) int64, of the samples from position ``start`` of the endless sequence."""
        epochs, positions = np.divmod(np.arange(start, start + count), len(self.dataset))
        indices = [self._order(epoch)[position] for epoch, position in zip(epochs.tolist(), positions.tolist())]
        return epochs, np.array(indices, dtype=np.int64)

    def examples_of_step(self, step: int) -> np.ndarray:
        """Indices into the dataset, (global_batch,) int64, of optimizer step ``step``, counted from 1, over all processes."""
        return self.examples((step - 1) * self.global_batch, self.global_batch)[1]

    def beginnings(self, indices: np.ndarray) -> dict[int, str]:
        """The first words of samples, by their index into the dataset, without white space: to find them in the files."""
        rows = self.dataset[indices.tolist()]["input_ids"]
        return {int(index): "".join(self.masker.tokenizer.decode(row[:32]).split()) for index, row in zip(indices, rows)}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            self.orders = {old: order for old, order in self.orders.items() if old == epoch - 1}
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self.orders[epoch] = random.permutation(np.arange(len(self.dataset), dtype=np.uint32))
        return self.orders[epoch]


def masked_batch(dataset: Any, masker: WholeWordMasker, epochs: np.ndarray, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """Reads samples and masks them; returns the masker's batch as tensors, int64."""
    rows = dataset[indices.tolist()]
    lengths = np.fromiter(map(len, rows["input_ids"]), np.int64, len(indices))
    ids = dense_rows(rows["input_ids"], lengths, masker.content_length)
    continues = dense_rows(rows["continues"], lengths, masker.content_length)
    batch = masker(ids, continues, lengths, epochs, indices)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def dense_rows(rows: Any, lengths: np.ndarray, width: int) -> np.ndarray:
    """Rows of different lengths as one array (rows, width), padded with zeros."""
    if (lengths == width).all():
        return np.asarray(rows)
    dense = np.zeros((len(rows), width), dtype=rows[0].dtype)
    dense[np.arange(width) < lengths[:, None]] = np.concatenate(list(rows))
    return dense


# ---------------------------------------------------------------- the loader


def make_loader(batches: TrainingBatches, numbers: Iterable[int], device: torch.device) -> DataLoader:
    """Loads the micro-batches with these numbers, in order; on a GPU in two worker processes.

    An optimizer step takes all its micro-batches before it begins, so one more step must be ready while a step is computed.
    """
    workers: dict[str, Any] = {}
    if device.type == "cuda":
        workers = {"num_workers": 2, "pin_memory": True, "prefetch_factor": max(8, batches.micro_batches)}
    return DataLoader(batches, batch_size=None, sampler=numbers, worker_init_fn=ignore_signals, **workers)  # type: ignore[arg-type]


def ignore_signals(worker: int) -> None:
    """For loader workers: a signal to the whole process group must not stop the data of the step that is being finished."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
