"""The CPU's own attention computes what torch's does, also its gradients, its mask and its dropout; oneDNN's products stay exact."""

import pytest
import torch
import torch.nn.functional as F

from pretraining.distillation import cpu

SHAPE = (3, 4, 37, 8)  # batch, heads, length, size


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(SHAPE).to(dtype).requires_grad_() for _ in range(3)]


def padding_mask() -> torch.Tensor:
    lengths = torch.tensor([37, 20, 1])
    return (torch.arange(37) < lengths[:, None])[:, None, None].expand(-1, 1, 37, 37)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("mask", [None, padding_mask()], ids=["full", "padded"])
def test_attention_and_its_gradients_are_those_of_torch(dtype, tolerance, mask):
    query, key, value = tensors = inputs(dtype)
    grad = torch.randn(3, 37, 4, 8).to(dtype)
    output, weights = cpu.attention(None, query, key, value, mask, scaling=0.3)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(torch.autograd.grad(output, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_backward_uses_the_dropout_of_the_forward():
    query, key, value = tensors = inputs()
    grad = torch.randn(3, 37, 4, 8)
    torch.manual_seed(2)
    keep = cpu._random_keep((3, 4, 37, 37), 16384)
    torch.manual_seed(2)
    output, _ = cpu.attention(None, query, key, value, None, dropout=0.25, scaling=0.3)
    weights = torch.softmax(query @ key.transpose(2, 3) * 0.3, -1) * keep / 0.75
    expected = (weights @ value).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    for found, wanted in zip(torch.autograd.grad(output, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_dropout_drops_its_share_in_every_place():
    keep = cpu._random_keep((1000, 1001), 6554).float()  # 0.1 of 65536
    assert keep.mean() == pytest.approx(0.9, abs=1e-3)
    for first in range(4):
        assert keep.flatten()[first::4].mean() == pytest.approx(0.9, abs=2e-3)
    assert torch.corrcoef(torch.stack([keep[:, :-1].flatten(), keep[:, 1:].flatten()]))[0, 1].abs() < 5e-3


def test_products_are_float32_and_the_setting_goes_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    left, right = torch.randn(300, 200), torch.randn(200, 100)
    if cpu.onednn_is_exact():
        with cpu.onednn_products():
            product = left @ right
        assert (product - left.double() @ right.double()).abs().max() < 1e-4  # bfloat16 would be off by a tenth
    assert torch.backends.mkldnn.matmul.fp32_precision == before
