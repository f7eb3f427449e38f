"""The peak that the MFU of a run is a share of."""

import pytest
import torch

from pretraining.distillation.modeling import flops_utilization

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_half_the_peak_is_an_mfu_of_a_half(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops_utilization(peak / 2, CUDA) == 0.5


def test_there_is_none_on_a_gpu_that_is_not_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    assert flops_utilization(1e12, CUDA) is None and flops_utilization(1e12, torch.device("cpu")) is None
