"""What is known of GPUs from their data sheets, and how long a traced step takes on one by the roofline."""

from collections.abc import Iterable
from typing import NamedTuple

# Dense bfloat16 operations per second. The first name that is part of the device's name counts.
DENSE_BF16_PEAK = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


def bf16_peak(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of the GPU with this name; None if they are not known."""
    return next((peak for part, peak in DENSE_BF16_PEAK.items() if part in device_name), None)


class Card(NamedTuple):
    """A GPU, by its data sheet.

    Attributes:
        memory: bytes; a gigabyte of the data sheet counts as 10^9, so that the true value is at least this.
        half_peak, float_peak: dense operations per second in bfloat16 and in float32.
        bandwidth: bytes a second that the memory reads or writes.
        products_share: the share of the peak that large matrix products reach. An assumption, as is ``BANDWIDTH_SHARE``.
    """

    memory: int
    half_peak: float
    float_peak: float
    bandwidth: float
    products_share: float


CARDS = {
    "A100-40GB": Card(40 * 10**9, DENSE_BF16_PEAK["A100"], 19.5e12, 1.555e12, 0.74),
    "A100-80GB": Card(80 * 10**9, DENSE_BF16_PEAK["A100"], 19.5e12, 2.039e12, 0.74),
    "H100": Card(80 * 10**9, DENSE_BF16_PEAK["H100"], 67e12, 3.35e12, 0.61),
    "H200": Card(141 * 10**9, DENSE_BF16_PEAK["H200"], 67e12, 4.8e12, 0.61),
    "L40S": Card(48 * 10**9, DENSE_BF16_PEAK["L40S"], 91.6e12, 0.864e12, 0.7),
    "4090": Card(24 * 10**9, DENSE_BF16_PEAK["4090"], 82.6e12, 1.008e12, 0.7),
}
BANDWIDTH_SHARE = 0.8
KERNEL_SECONDS = 2e-6  # the least time of one operation
COMPILED_SHARE = 0.4  # of the time between matrix products; torch.compile joins small operations into one kernel


def roofline_seconds(operations: Iterable[tuple[int, int]], card: Card, half: bool, compiled: bool) -> float:
    """Estimates the seconds of a traced step: each operation waits for its products or for its bytes, whichever takes longer.

    Williams et al. 2009, doi:10.1145/1498765.1498785. Communication between GPUs, data and the optimizer are left out.

    Args:
        operations: ``memory_trace.StepCost.operations``.
    """
    peak = card.products_share * (card.half_peak if half else card.float_peak)
    bandwidth = BANDWIDTH_SHARE * card.bandwidth
    products = others = 0.0
    for flops, transferred in operations:
        if flops:
            products += max(flops / peak, transferred / bandwidth)
        else:
            others += max(transferred / bandwidth, KERNEL_SECONDS)
    return products + others * (COMPILED_SHARE if compiled else 1)
