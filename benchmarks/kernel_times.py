"""Which kernels the time of a training step goes to."""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# Which group a kernel (on a CPU: an operator) belongs to; the first that fits.
GROUPS = {
    "attention": r"flash|fmha|attention",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|addmm|aten::mm|bmm|matmul",
    "optimizer and clipping": r"multi_tensor|adam|foreach|_norm_",
    "softmax and losses": r"softmax|nll|mse|cross_entropy|logsumexp",
    "layer norm, gelu, dropout and the like": r"layer_norm|gelu|dropout|bernoulli|philox|triton|elementwise|vectorized|reduce",
    "copies": r"memcpy|memset|copy|cat|fill|gather|index|embedding",
}


def kernel_shares(step: Callable[[], object], steps: int = 3) -> dict[str, dict[str, float]]:
    """Shares of a step's time.

    Returns:
        "time_of_a_step": the share of each group of kernels, and of the device doing nothing; together 1.
        "longest_kernels": the shares of the twelve longest kernels.
    """
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        elapsed = (time.perf_counter() - start) * 1e6
    times = _kernel_times(profiler) if cuda else _operator_times(profiler)
    total = max(elapsed, sum(times.values()))
    groups = Counter({"the device waits": total - sum(times.values())})
    for kernel, microseconds in times.items():
        groups[_group_of(kernel)] += microseconds
    return {
        "time_of_a_step": {group: microseconds / total for group, microseconds in groups.most_common()},
        "longest_kernels": {kernel: microseconds / total for kernel, microseconds in times.most_common(12)},
    }


def _kernel_times(profiler: profile) -> Counter[str]:
    """Microseconds of each GPU kernel and copy."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            times[event["name"]] += event["dur"]
    return times


def _operator_times(profiler: profile) -> Counter[str]:
    """Microseconds of each operator on the CPU, without those that it calls."""
    return Counter({event.key: event.self_cpu_time_total for event in profiler.key_averages()})


def _group_of(kernel: str) -> str:
    return next((group for group, names in GROUPS.items() if re.search(names, kernel, re.IGNORECASE)), "other")


def synchronize() -> None:
    """Waits until the GPU has done all its work, if there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
