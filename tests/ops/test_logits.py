"""The stages between head and draw: op against specification, rows that stay alone, what the contract ignores."""

from __future__ import annotations

import math
import re

import pytest
import torch
from oracle import Poisoned, assert_accurate, same_bits

from pyengine import ops
from pyengine.ops import reference

VOCAB_SIZES = [1, 31, 32, 33, 1000, 49152]
NUM_STATES = 4
ROWS = [2, -1, 0, 3, -1, 1, -1]  # which state a row of logits uses


def ints(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def random_logits(vocab_size, device, num_rows=7):
    """Of both signs, with ties, masked tokens and zeros of both signs."""
    logits = (4 * torch.randn(num_rows, vocab_size) * 8).round() / 8
    logits[:, vocab_size // 2 :: 5] *= 1.37
    logits[:, 3::11] = -math.inf
    logits[:, 4::13] = -0.0
    return logits.to(device)


def random_history(vocab_size, device):
    """A few tokens of each row seen, in the prompt, in the output or in both, up to the largest count."""
    history = torch.zeros(NUM_STATES, vocab_size, dtype=torch.int32)
    some = torch.rand(NUM_STATES, vocab_size) < 0.2
    history[some] = torch.randint(0, 5, (int(some.sum()),), dtype=torch.int32)
    history[torch.rand(NUM_STATES, vocab_size) < 0.1] += 0x8000
    history[:, -1] = 0xFFFF
    return history.to(torch.uint16).to(device)


def factors(device):
    """(repetition, frequency, presence): some off, some that reward."""
    values = [1.3, 1.0, 0.5, 2.0], [0.0, 0.25, -0.5, 1.1], [0.7, 0.0, 0.1, -0.3]
    return tuple(torch.tensor(v, device=device) for v in values)


def edited(stage, logits, *args):
    """The stage's result for strided rows between NaN, and the check that it wrote nothing beside them."""
    poisoned = Poisoned(logits)
    stage(poisoned.view, *args)
    poisoned.assert_guards_intact()
    return poisoned.view.clone()


# ---- penalties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_penalties(device, vocab_size):
    logits, history = random_logits(vocab_size, device), random_history(vocab_size, device)
    rows, state = ints(ROWS, device), (history, *factors(device))
    actual, expected, truth = edited(ops.apply_penalties, logits, rows, *state), logits.clone(), logits.double()
    reference.apply_penalties(expected, rows, *state)
    reference.apply_penalties(truth, rows, history, *(f.double() for f in factors(device)))
    untouched = history.int()[rows.clamp(min=0).long()] == 0
    untouched[rows < 0] = True
    assert same_bits(actual[untouched], logits[untouched])
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    assert_accurate(actual[finite], truth[finite], expected[finite])


def test_penalties_by_hand(device):
    logits = torch.tensor([[4.0, -4.0, 4.0, -4.0, 4.0, math.inf, 0.0, 1.0]], device=device)
    history = torch.tensor([[0x8000, 0x8000, 3, 0x8001, 0, 1, 0xFFFF, 1]], dtype=torch.int32).to(torch.uint16)
    one = torch.ones(1, device=device)
    ops.apply_penalties(logits, ints([0], device), history.to(device), 2 * one, 0.5 * one, 0.25 * one)
    assert logits[0, :6].tolist() == [2.0, -8.0, 0.25, -8.75, 4.0, math.inf]
    assert logits[0, 6:].tolist() == [-0.5 * 0x7FFF - 0.25, -0.25]


def test_history(device):
    """A row's counts are those of its own tokens, however they come to it, and other rows keep theirs."""
    for vocab_size in (1, 33, 20_000):
        history = random_history(vocab_size, device)
        expected = history.cpu()
        token_ids = torch.randint(-3, vocab_size + 3, (700,), dtype=torch.int32)
        for row, num_prompt in ((1, 0), (3, 250), (0, 700)):
            ops.reset_history(history, row, token_ids.to(device), num_prompt)
            reference.reset_history(expected, row, token_ids, num_prompt)
            assert torch.equal(history.cpu(), expected)
        ops.reset_history(history, 2, token_ids[:0].to(device), 0)
        expected[2] = 0
        for _ in range(3):
            rows, sampled = ints([3, -1, 2, 0], device), torch.randint(-1, vocab_size + 1, (4,), dtype=torch.int32)
            ops.count_tokens(history, rows, sampled.to(device))
            reference.count_tokens(expected, rows.cpu(), sampled)
            assert torch.equal(history.cpu(), expected)


def test_counts_saturate(device):
    history = torch.zeros(2, 3, dtype=torch.uint16, device=device)
    tokens = torch.ones(0x7FFF + 5, dtype=torch.int32, device=device)
    tokens[0] = 2
    ops.reset_history(history, 0, tokens, 1)
    assert history.tolist() == [[0, 0x7FFF, 0x8000], [0, 0, 0]]
    tokens[0] = 1
    ops.reset_history(history, 1, tokens, 1)
    for _ in range(3):
        ops.count_tokens(history, ints([0, 1], device), ints([1, 1], device))
    assert history.tolist() == [[0, 0x7FFF, 0x8000], [0, 0xFFFF, 0]]


# ---- biases and masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_bias(device, vocab_size):
    logits = random_logits(vocab_size, device)
    tokens = torch.randperm(vocab_size)[:300]
    entries = torch.stack([torch.randint(-1, len(ROWS), tokens.shape), tokens], dim=1).int()
    beside = torch.tensor([[len(ROWS), 0], [-5, 0], [0, -1], [0, vocab_size]], dtype=torch.int32)
    entries = torch.cat([entries, beside]).to(device)
    values = torch.randn(len(entries)).to(device)
    values[::7] = -math.inf
    expected = logits.clone()
    reference.apply_bias(expected, entries, values)
    assert same_bits(edited(ops.apply_bias, logits, entries, values), expected)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("density", ["dense", "sparse", "short"])
def test_mask(device, vocab_size, density):
    logits = random_logits(vocab_size, device)
    logits[0, 0] = math.nan
    num_words = -(-vocab_size // 32)
    masks = torch.randint(-(2**31), 2**31, (NUM_STATES, num_words + 3), dtype=torch.int64).int()
    if density == "sparse":
        masks[torch.rand(masks.shape) < 0.8] = 0
        masks[torch.rand(masks.shape) < 0.3] = -1
    masks = masks.to(device)[:, : num_words // 2 if density == "short" else num_words]
    expected, rows = logits.clone(), ints(ROWS, device)
    reference.apply_mask(expected, rows, masks)
    assert same_bits(edited(ops.apply_mask, logits, rows, masks), expected)


# ---- log-probabilities ---------------------------------------------------------------------------------------------


def check_logprobs(logits, targets, k):
    """Ids and ranks as the specification has them, log-probabilities as near to the truth as torch's."""
    actual = ops.logprobs(logits, targets, k)
    expected, truth = reference.logprobs(logits, targets, k), reference.logprobs(logits.double(), targets, k)
    assert torch.equal(actual[1], expected[1]) and torch.equal(actual[2], expected[2])
    for mine, plain, true in zip(actual[::3], expected[::3], truth[::3], strict=True):
        finite = true.isfinite()
        assert torch.equal(mine[~finite], plain[~finite])
        assert_accurate(mine[finite], true[finite], plain[finite])


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("k", [0, 1, 20, 64])
def test_logprobs(device, vocab_size, k):
    logits = Poisoned(random_logits(vocab_size, device)).view
    targets = torch.randint(0, vocab_size, (len(ROWS),), dtype=torch.int32)
    targets[1] = vocab_size - 1
    check_logprobs(logits, targets.to(device), k)


@pytest.mark.parametrize("k", [5, 64])
def test_logprobs_of_ordered_and_equal_logits(device, k):
    """The worst for a search that keeps the best so far: ascending, and nothing but ties."""
    ascending = torch.linspace(-9, 9, 20_000)
    rows = [ascending, ascending.flip(0), torch.zeros(20_000), ascending.round(), torch.full((20_000,), -math.inf)]
    logits = torch.stack(rows).to(device)
    logits[4, [17, 19_000]] = 2.5
    check_logprobs(logits, ints([19_999, 0, 777, 3, 19_000], device), k)


def test_logprobs_of_large_logits(device):
    logits = torch.tensor([[1.6e38, -1.6e38, 1.6e38, 0.0], [-1e30, -1e30, -1e30, -2e30], [90.0, 0.0, -90.0, 88.0]])
    check_logprobs(logits.to(device), ints([0, 2, 1], device), 4)


def test_padding_of_logprobs_may_be_anything(device):
    logits = random_logits(1000, device)
    logits[1] = math.nan
    targets = ints([3, -1, 5, 1000, 7, 8, 9], device)
    live = [0, 2, 4, 5, 6]
    for actual, expected in zip(ops.logprobs(logits, targets, 3), reference.logprobs(logits, targets, 3), strict=True):
        assert torch.allclose(actual[live].float(), expected[live].float(), atol=1e-6)


def test_logprobs_depend_on_their_own_row_alone(device):
    logits, targets = random_logits(5000, device, 40), torch.randint(0, 5000, (40,), dtype=torch.int32).to(device)
    whole = ops.logprobs(logits, targets, 7)
    for begin, end in ((0, 1), (5, 8), (39, 40), (10, 40)):
        part = ops.logprobs(logits[begin:end], targets[begin:end], 7)
        assert all(torch.equal(a, b[begin:end]) for a, b in zip(part, whole, strict=True))


# ---- rows that stay alone ------------------------------------------------------------------------------------------


def test_a_bad_row_stays_alone(device):
    """NaN, +inf or nothing but -inf: that row's log-probabilities are NaN, the other rows keep their bits."""
    logits, rows = random_logits(3000, device), ints([2, 1, 0, 3, -1, 1, -1], device)
    bad = logits.clone()
    bad[1, 2999], bad[3, 0], bad[5] = math.nan, math.inf, -math.inf
    good, masks = [0, 2, 4, 6], torch.randint(0, 2**31, (NUM_STATES, 94), dtype=torch.int32).to(device)
    state = (random_history(3000, device), *factors(device))
    for stage, args in ((ops.apply_penalties, (rows, *state)), (ops.apply_mask, (rows, masks))):
        assert same_bits(edited(stage, bad, *args)[good], edited(stage, logits, *args)[good])
    targets = ints([1, 2, 5, 8, 9, 10, 12], device)
    for with_bad, without in zip(ops.logprobs(bad, targets, 5), ops.logprobs(logits, targets, 5), strict=True):
        assert torch.equal(with_bad[good], without[good])
        if with_bad.dtype == torch.float32:
            assert with_bad[[1, 3, 5]].isnan().all()


def test_no_rows(device):
    empty, none = torch.zeros(0, 50, device=device), ints([], device)
    state = (random_history(50, device), *factors(device))
    ops.apply_penalties(empty, none, *state)
    ops.apply_mask(empty, none, torch.zeros(1, 2, dtype=torch.int32, device=device))
    ops.apply_bias(empty, ints([], device).view(0, 2), torch.zeros(0, device=device))
    ops.count_tokens(state[0], none, none)
    assert [list(t.shape) for t in ops.logprobs(empty, none, 3)] == [[0], [0], [0, 3], [0, 3]]


def test_every_instruction_set():
    """Each CPU version against the specification."""
    best = ops.isa()
    try:
        for isa in ("generic", "avx2", "avx512bf16", "amx"):
            ops.set_isa(isa)
            for vocab_size in (33, 1000):
                test_penalties("cpu", vocab_size)
                test_mask("cpu", vocab_size, "sparse")
                test_logprobs("cpu", vocab_size, 20)
            if isa == best:
                break
    finally:
        ops.set_isa(best)


def test_recorded_stages_run_again():
    logits, history = random_logits(100, "cpu"), random_history(100, "cpu")
    rows, masks = ints(ROWS, "cpu"), torch.randint(0, 2**31, (NUM_STATES, 4), dtype=torch.int32)
    targets, once = ints([0] * len(ROWS), "cpu"), logits.clone()

    def stages(x):
        ops.apply_penalties(x, rows, history, *factors("cpu"))
        ops.apply_bias(x, ints([[1, 50]], "cpu"), torch.ones(1))
        ops.apply_mask(x, rows, masks)
        return ops.logprobs(x, targets, 2)

    expected, again = stages(once), logits.clone()
    with ops.record() as program:
        recorded = stages(again)
    for tensor in recorded:
        tensor.zero_()
    again.copy_(logits)
    program.replay()
    assert same_bits(again, once)
    assert all(torch.allclose(a.float(), b.float(), equal_nan=True) for a, b in zip(recorded, expected, strict=True))


# ---- errors --------------------------------------------------------------------------------------------------------


def test_wrong_arguments():
    logits, rows = torch.zeros(2, 40), ints([0, -1], "cpu")
    history, one, masks = torch.zeros(3, 40, dtype=torch.uint16), torch.ones(3), torch.zeros(3, 2, dtype=torch.int32)
    entries = ints([[0, 0], [0, 1]], "cpu")
    cases = [
        (ops.apply_penalties, (logits.double(), rows, history, one, one, one), "logits must be float32, got float64"),
        (ops.apply_penalties, (logits, rows, history.int(), one, one, one), "history must be uint16, got int32"),
        (
            ops.apply_penalties,
            (logits, rows, history[:, 1:], one, one, one),
            "history must have the shape [num_states=3, vocab_size=40], got [3, 39]",
        ),
        (
            ops.apply_penalties,
            (logits, rows, history, one, one[:2], one),
            "frequency must have the shape [num_states=3], got [2]",
        ),
        (
            ops.apply_penalties,
            (logits[:1].expand(2, 40), rows, history, one, one, one),
            "logits must have rows that do not overlap, got a stride of 0 for 40 columns",
        ),
        (ops.count_tokens, (history, rows, rows[:1]), "token_ids must have the shape [num_rows=2], got [1]"),
        (ops.reset_history, (history, 3, rows, 0), "row must be in [0, num_states=3), got 3"),
        (ops.reset_history, (history, 0, rows, 3), "num_prompt must be in [0, num_tokens=2], got 3"),
        (
            ops.apply_bias,
            (logits, entries.flatten(), one[:2]),
            "entries must have the shape [num_entries, 2=2], got [4]",
        ),
        (ops.apply_bias, (logits, entries, one), "values must have the shape [num_entries=2], got [3]"),
        (ops.apply_mask, (logits, rows.long(), masks), "mask_rows must be int32, got int64"),
        (ops.apply_mask, (logits, rows, masks.t()), "masks must have a contiguous last dimension, got stride 2"),
        (ops.logprobs, (logits, rows, 65), "k must be in [0, 64], got 65"),
        (ops.logprobs, (logits, rows[:1], 5), "target_ids must have the shape [num_rows=2], got [1]"),
        (ops.logprobs, (torch.zeros(2, 0), rows, 5), "vocab_size must be positive"),
    ]
    for op, args, text in cases:
        with pytest.raises(RuntimeError, match=re.escape(f"{op.__name__}: {text}")):
            op(*args)
