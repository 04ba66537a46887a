"""rms_norm and silu_mul: accuracy against the reference, strides, in-place residual, batch invariance."""

from __future__ import annotations

import pytest
import torch
from oracle import Poisoned, assert_accurate, same_bits

from pyengine import ops
from pyengine.ops import reference

SHAPES = [(1, 8), (3, 64), (7, 576), (33, 1536), (2, 4096), (130, 72)]


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(device, dtype, shape):
    x, weight = torch.randn(shape).to(device, dtype), torch.randn(shape[1]).to(device, dtype)
    truth = reference.rms_norm(x.double(), weight.double(), 1e-5)
    plain = torch.nn.functional.rms_norm(x, shape[1:], weight, 1e-5)
    assert_accurate(ops.rms_norm(x, weight, 1e-5), truth, plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_with_residual(device, dtype, shape):
    x, residual, weight = (
        torch.randn(shape).to(device, dtype),
        torch.randn(shape).to(device, dtype),
        torch.randn(shape[1]).to(device, dtype),
    )
    summed = x + residual  # one rounding: exact
    actual = ops.rms_norm(x, weight, 1e-5, residual)
    assert same_bits(residual, summed)
    truth = reference.rms_norm(summed.double(), weight.double(), 1e-5)
    assert_accurate(actual, truth, torch.nn.functional.rms_norm(summed, shape[1:], weight, 1e-5))


def test_rms_norm_strided(device, dtype):
    x, residual = Poisoned(torch.randn(5, 96).to(device, dtype)), Poisoned(torch.randn(5, 96).to(device, dtype))
    weight = torch.randn(96).to(device, dtype)
    expected_residual = residual.view.clone()
    expected = ops.rms_norm(x.view.contiguous(), weight, 1e-6, expected_residual)
    assert same_bits(ops.rms_norm(x.view, weight, 1e-6, residual.view), expected)
    assert same_bits(residual.view, expected_residual)
    x.assert_guards_intact()
    residual.assert_guards_intact()


def test_rms_norm_row_does_not_depend_on_the_batch(device, dtype):
    x, weight = torch.randn(70, 576).to(device, dtype), torch.randn(576).to(device, dtype)
    whole = ops.rms_norm(x, weight, 1e-5)
    for rows in (slice(0, 1), slice(3, 20), slice(69, 70)):
        assert same_bits(ops.rms_norm(x[rows], weight, 1e-5), whole[rows])


def test_rms_norm_of_zeros_and_extremes(device, dtype):
    weight = torch.ones(64, device=device, dtype=dtype)
    assert (ops.rms_norm(torch.zeros(2, 64, device=device, dtype=dtype), weight, 1e-6) == 0).all()
    huge = torch.full((2, 64), 30000.0, device=device, dtype=dtype)
    assert torch.allclose(ops.rms_norm(huge, weight, 1e-6).float(), torch.ones(2, 64, device=device))


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_mul(device, dtype, shape):
    rows, cols = shape
    gate_up = 3 * torch.randn(rows, 2 * cols).to(device, dtype)
    plain = torch.nn.functional.silu(gate_up[:, :cols]) * gate_up[:, cols:]
    assert_accurate(ops.silu_mul(gate_up), reference.silu_mul(gate_up.double()), plain)


def test_silu_mul_strided_and_saturated(device, dtype):
    content = torch.randn(4, 128).to(device, dtype)
    content[0, 0], content[1, 1] = -1e4, 1e4  # silu underflows to 0, is the identity
    content[0, 64], content[1, 65] = 2.0, 0.5
    gate_up = Poisoned(content)
    out = ops.silu_mul(gate_up.view)
    assert out[0, 0] == 0 and out[1, 1] == content[1, 1] / 2
    assert same_bits(out, ops.silu_mul(content))
    gate_up.assert_guards_intact()


def test_no_rows(device, dtype):
    empty = torch.empty(0, 64, device=device, dtype=dtype)
    assert ops.rms_norm(empty, torch.ones(64, device=device, dtype=dtype), 1e-5).shape == (0, 64)
    assert ops.silu_mul(empty).shape == (0, 32)
