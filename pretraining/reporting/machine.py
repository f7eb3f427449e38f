"""What torch can compute on here."""

import platform
import re
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def devices() -> list[str]:
    """``["cpu", "cuda"]``, or ``["cpu"]`` on a machine without a GPU."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def device_name(device: str) -> str:
    """The name of the GPU (``"cuda"``) or CPU (``"cpu"``), as far as the system reports it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()
