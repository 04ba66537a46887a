"""sample: the specification's token for every filter, rows that fail alone, the right distribution."""

from __future__ import annotations

import pytest
import torch

from pyengine import ops
from pyengine.ops import reference


def parameters(num_rows, device, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """(temperature, top_k, top_p, min_p, seeds, positions) for num_rows rows, equal but for seeds and positions."""

    def filled(value, dtype):
        return torch.full((num_rows,), value, dtype=dtype, device=device)

    seeds = torch.randint(-(2**63), 2**63 - 1, (num_rows,), dtype=torch.int64).to(device)
    positions = torch.randint(0, 100_000, (num_rows,), dtype=torch.int32).to(device)
    f32, i32 = torch.float32, torch.int32
    return filled(temperature, f32), filled(top_k, i32), filled(top_p, f32), filled(min_p, f32), seeds, positions


FILTERS = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 1},
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.2, "top_k": 100, "top_p": 0.8, "min_p": 0.02},
    {"top_k": 10**9, "top_p": 5.0},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [3, 1000, 49152])
def test_against_reference(device, filters, vocab_size):
    logits = (4 * torch.randn(16, vocab_size)).to(device)
    params = parameters(16, device, **filters)
    assert torch.equal(ops.sample(logits, *params), reference.sample(logits, *params))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_equal_logits_share_their_fate(device, filters):
    """Logits rounded to quarters: thousands of ties, which every filter keeps or drops together."""
    logits = ((4 * torch.randn(8, 5000)).round() / 4).to(device)
    params = parameters(8, device, **filters)
    assert torch.equal(ops.sample(logits, *params), reference.sample(logits, *params))


def test_greedy_takes_the_lowest_id_among_equals(device):
    logits = torch.zeros(3, 1000, device=device)
    logits[1, [17, 400, 999]] = 2.0
    logits[2, 999] = 1.0
    assert ops.sample(logits, *parameters(3, device, temperature=0.0)).tolist() == [0, 17, 999]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_fails_alone(device, temperature):
    logits = torch.randn(6, 2000).to(device)
    params = parameters(6, device, temperature=temperature)
    healthy = ops.sample(logits, *params)
    logits[1, 1999], logits[3, 0], logits[4] = float("nan"), float("inf"), float("-inf")
    assert ops.sample(logits, *params).tolist() == [healthy[0], -1, healthy[2], -1, -1, healthy[5]]


def test_masked_tokens_are_never_drawn(device):
    logits = torch.randn(64, 300).to(device)
    logits[:, 7:] = float("-inf")
    assert ops.sample(logits, *parameters(64, device, temperature=100.0)).max() < 7


def test_param_rows(device):
    """Row b takes its parameters from param_rows[b]; -1 is padding whose logits may be anything."""
    logits = torch.randn(4, 500).to(device)
    temperature, top_k, top_p, min_p, seeds, positions = parameters(9, device)
    temperature[5] = 0.0
    rows = torch.tensor([5, 8, -1, 0], dtype=torch.int32, device=device)
    positions = positions[:4].contiguous()
    logits[2] = float("nan")
    actual = ops.sample(logits, temperature, top_k, top_p, min_p, seeds, positions, rows)
    expected = reference.sample(logits, temperature, top_k, top_p, min_p, seeds, positions, rows)
    assert torch.equal(actual[[0, 1, 3]], expected[[0, 1, 3]]) and actual[0] == logits[0].argmax()


def test_draw_depends_on_its_own_row_alone(device):
    logits = (3 * torch.randn(40, 1000)).to(device)
    params = parameters(40, device, temperature=0.9, top_k=200, top_p=0.9)
    whole = ops.sample(logits, *params)
    for begin, end in ((0, 1), (5, 8), (39, 40), (10, 40)):
        assert torch.equal(ops.sample(logits[begin:end], *(p[begin:end] for p in params)), whole[begin:end])


def test_strided_logits(device):
    wide = torch.full((5, 1100), float("nan"), device=device)
    wide[:, :1000] = torch.randn(5, 1000).to(device)
    params = parameters(5, device)
    assert torch.equal(ops.sample(wide[:, :1000], *params), ops.sample(wide[:, :1000].contiguous(), *params))


def test_distribution(device):
    """20,000 draws over positions: each token's count within 5 standard deviations of its probability."""
    num_draws, logits = 20_000, torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    temperature, top_k, top_p, min_p, seeds, _ = parameters(num_draws, device, temperature=0.8)
    seeds.fill_(42)
    positions = torch.arange(num_draws, dtype=torch.int32, device=device)
    drawn = ops.sample(logits.to(device).repeat(num_draws, 1), temperature, top_k, top_p, min_p, seeds, positions)
    counts = torch.bincount(drawn.long().cpu(), minlength=6).double()
    expected = torch.softmax(logits.double() / 0.8, 0) * num_draws
    deviation = (counts - expected).abs() / (expected * (1 - expected / num_draws)).sqrt()
    assert deviation.max() < 5, deviation


def test_exponential_is_accurate_and_positive():
    draws = torch.cat([reference.exponential(seed, seed * 7, 50_000) for seed in (0, 1, -1, 2**62)])
    assert (draws > 0).all() and abs(draws.mean() - 1) < 0.01 and abs((draws < 1).double().mean() - 0.632) < 0.005
