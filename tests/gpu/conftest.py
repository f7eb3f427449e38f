"""The library that stands for a GPU."""

import shutil
from pathlib import Path

import pytest

from tests.gpu import shim


@pytest.fixture(scope="session")
def fake_cuda_library(tmp_path_factory) -> Path:
    """Lets a torch without CUDA have a CUDA device of fake tensors, in processes that load it before torch."""
    if not shim.is_needed():
        pytest.skip("this torch was built with CUDA; fake CUDA tensors need the CPU build of torch")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++, which builds the library of tests/gpu/fake_cuda.cpp")
    return shim.build(compiler, tmp_path_factory.mktemp("fake_cuda"))
