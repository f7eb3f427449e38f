"""Builds and loads the library that gives a torch without CUDA one CUDA device for fake tensors. Imports no torch: the library comes first."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def _torch() -> Path:
    found = importlib.util.find_spec("torch")  # finds the package and does not import it
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def is_needed() -> bool:
    """False if torch was built with CUDA: it registers its own device, and a second one ends the process."""
    return not (_torch() / "lib" / "libtorch_cuda.so").exists()


def build(compiler: str, directory: Path) -> Path:
    """Compiles the library with g++, in about two seconds; returns its path."""
    library, torch = directory / "libfake_cuda.so", _torch()
    include, lib = torch / "include", torch / "lib"
    options = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{include}", str(SOURCE), f"-L{lib}", "-lc10", "-ltorch_cpu", "-o", str(library)]
    subprocess.run([compiler, *options], check=True)
    return library


def load(library: str) -> None:
    """Loads the library and what it needs of torch; only an ``import torch`` after this sees the device."""
    lib = _torch() / "lib"
    for path in (lib / "libc10.so", lib / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
