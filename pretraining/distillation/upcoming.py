"""The micro-batches of a step, and what all processes must know before they compute it."""

import torch
import torch.distributed as dist

from pretraining.utils import STOP_SIGNALS

Batch = dict[str, torch.Tensor]


class UpcomingStep:
    """Starts to add up masked positions and signals over the processes; one sum that runs while another step is computed.

    Args:
        micro_batches: of this process; empty behind the last step.
        signal_number: the signal that this process received, or 0.
        world_size: the number of processes; several need an initialised process group.
    """

    def __init__(self, micro_batches: list[Batch], signal_number: int = 0, world_size: int = 1):
        self.micro_batches, self.world_size = micro_batches, world_size
        masked = sum(int((batch["labels"] >= 0).sum()) for batch in micro_batches)
        self.counts = torch.tensor([masked, *(signal_number == number for number in STOP_SIGNALS)])
        self.reduction = dist.all_reduce(self.counts, async_op=True) if world_size > 1 else None

    def wait(self) -> tuple[list[Batch], int]:
        """Waits for the sum.

        Returns:
            the micro-batches, each with ``mean_masked``: masked positions per micro-batch, the mean over the global batch. The loss is
            divided by it, so the split of the batch makes no difference. Then the signal that a process received, the same on all
            processes, or 0.
        """
        if self.reduction is not None:
            self.reduction.wait()
        masked, *received = self.counts.tolist()
        if self.micro_batches:
            mean = torch.tensor(masked).float().clamp(min=1) / (len(self.micro_batches) * self.world_size)
            for batch in self.micro_batches:
                batch["mean_masked"] = mean
        return self.micro_batches, next((int(number) for number, count in zip(STOP_SIGNALS, received) if count), 0)
