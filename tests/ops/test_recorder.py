"""The CPU recorder: a replay is the ops once more, on the same tensors, which the program keeps alive."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from oracle import same_bits

from pyengine import ops
from pyengine.ops import reference


def layer(x, packed, weight):
    return ops.linear_silu_mul(ops.rms_norm(x, weight, 1e-5), packed)


@pytest.fixture
def problem():
    x, weight = torch.randn(4, 64, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    return x, ops.pack_weight(torch.randn(128, 64, dtype=torch.bfloat16)), weight


def test_replay_computes_from_the_tensors_present_values(problem):
    x, packed, weight = problem
    with ops.record() as program:
        y = layer(x, packed, weight)
    first = y.clone()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        program.replay()
        assert same_bits(y, layer(x, packed, weight)) and not same_bits(y, first)


def test_a_gated_product_replays_as_its_two_ops(problem):
    x, packed, _ = problem
    with ops.record() as program:
        gated = ops.linear_silu_mul(x, packed)
        apart = ops.silu_mul(ops.linear(x, packed))
    x.copy_(torch.randn_like(x))
    gated.fill_(float("nan"))
    program.replay()
    assert same_bits(gated, apart) and not gated.isnan().any()


def test_program_keeps_its_temporaries_alive(problem):
    x, packed, weight = problem
    with ops.record() as program:
        y = layer(x, packed, weight)
    expected = y.clone()
    del packed, weight
    gc.collect()
    ballast = [
        torch.full((4, n), float("nan"), dtype=torch.bfloat16) for n in (64, 128, 64, 128, 8192)
    ]  # would take freed memory
    program.replay()
    assert same_bits(y, expected) and all(b.isnan().all() for b in ballast)


def test_a_freed_program_frees_its_tensors(problem):
    x, packed, weight = problem
    with ops.record() as program:
        layer(x, packed, weight)
    references = x.untyped_storage()._use_count() if hasattr(x.untyped_storage(), "_use_count") else None
    handle = program._handle
    del program
    gc.collect()
    with pytest.raises(RuntimeError, match=f"record_replay: no program has the handle {handle}"):
        torch.ops.pyengine.record_replay(handle)
    if references is not None:
        assert x.untyped_storage()._use_count() < references


def test_nothing_is_recorded_outside(problem):
    x, packed, weight = problem
    with ops.record() as program:
        pass
    y = layer(x, packed, weight)
    before = y.clone()
    x.zero_()
    program.replay()
    assert same_bits(y, before)


def test_an_exception_ends_the_recording(problem):
    x, packed, weight = problem
    with pytest.raises(ZeroDivisionError), ops.record():
        1 / 0  # noqa: B018
    with ops.record() as program:
        y = layer(x, packed, weight)
    program.replay()
    assert not y.isnan().any()


def test_recordings_do_not_nest_and_open_ones_do_not_replay():
    with ops.record() as program:
        with pytest.raises(RuntimeError, match="already recording"), ops.record():
            pass
        with pytest.raises(RuntimeError, match="still being recorded"):
            program.replay()


def test_other_threads_are_not_recorded(problem):
    x, packed, weight = problem
    results = []
    with ops.record() as program:
        thread = threading.Thread(target=lambda: results.append(layer(x, packed, weight)))
        thread.start()
        thread.join()
    expected = results[0].clone()
    x.zero_()
    program.replay()
    assert same_bits(results[0], expected)


def test_replayed_step_of_every_op():
    """One whole decode step, replayed with other tokens, against the reference."""
    weight = torch.randn(96, 64, dtype=torch.bfloat16)
    packed, ids = ops.pack_weight(weight), torch.tensor([3, 50], dtype=torch.int32)
    rows = torch.tensor([1, 0], dtype=torch.int32)
    with ops.record() as program:
        hidden = ops.gather_rows(ops.embedding(ids, packed), rows)
        logits = ops.linear(hidden, packed, out_dtype=torch.float32)
    ids.copy_(torch.tensor([95, 7]))
    program.replay()
    expected = reference.embedding(ids, reference.pack_weight(weight))[[1, 0]]
    assert same_bits(hidden, expected)
    assert same_bits(logits, ops.linear(expected, packed, out_dtype=torch.float32))
