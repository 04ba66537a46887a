"""The ops that build a step's inputs on the device and put its results back into the rows."""

from __future__ import annotations

import torch
from oracle import same_bits

from pyengine import ops
from pyengine.ops import StepTensors, reference

NUM_ROWS, MAX_BLOCKS, BLOCK_SIZE = 6, 8, 16


def ints(values, device="cpu", dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=device)


def step_tensors(device, rows, num_new, num_computed, offsets, num_tokens):
    garbage = 123456
    num_seqs = len(rows)

    def out(n, dtype=torch.int32):
        return torch.full((n,), garbage, dtype=dtype, device=device)

    return StepTensors(
        last_tokens=ints([100, 101, 102, 103, 104, 105], device),
        block_tables=torch.randperm(NUM_ROWS * MAX_BLOCKS, dtype=torch.int32).view(NUM_ROWS, MAX_BLOCKS).to(device),
        block_size=BLOCK_SIZE,
        rows=ints(rows, device),
        num_new_tokens=ints(num_new, device),
        num_computed=ints(num_computed, device),
        prompt_offsets=ints(offsets, device),
        prompt_ids=torch.arange(5000, 5100, dtype=torch.int32).to(device),
        query_start=out(num_seqs + 1),
        seq_lens=out(num_seqs),
        input_ids=out(num_tokens),
        positions=out(num_tokens),
        slot_mapping=out(num_tokens, torch.int64),
        last_indices=out(num_seqs),
    )


STEPS = [
    ([4, 0, 2], [1, 1, 1], [33, 0, 127], [-1, -1, -1], 3),  # decodes
    ([5, 1], [17, 40], [0, 31], [0, 17], 57),  # chunks of prompts
    (
        [3, -1, 0, 5, -1],
        [1, 0, 20, 1, 0],
        [15, 0, 16, 63, 0],
        [-1, -1, 4, -1, -1],
        32,
    ),  # mixed, with padding of both kinds
    ([-1], [0], [0], [-1], 4),
]


def test_step_inputs(device):
    for rows, num_new, num_computed, offsets, num_tokens in STEPS:
        torch.manual_seed(1)
        actual = step_tensors(device, rows, num_new, num_computed, offsets, num_tokens)
        torch.manual_seed(1)
        expected = step_tensors("cpu", rows, num_new, num_computed, offsets, num_tokens)
        ops.step_inputs(actual)
        reference.step_inputs(expected)
        for name in ("query_start", "seq_lens", "input_ids", "positions", "slot_mapping", "last_indices"):
            assert torch.equal(getattr(actual, name).cpu(), getattr(expected, name)), (name, rows)


def test_reference_step_inputs_by_hand():
    t = step_tensors("cpu", [2, -1, 1], [1, 0, 3], [16, 0, 15], [-1, -1, 10], 6)
    reference.step_inputs(t)
    first, second = int(t.block_tables[1, 0]), int(t.block_tables[1, 1])
    assert (
        t.query_start.tolist() == [0, 1, 1, 4]
        and t.seq_lens.tolist() == [17, 0, 18]
        and t.last_indices.tolist() == [0, 0, 3]
    )
    assert t.input_ids.tolist() == [102, 5010, 5011, 5012, 0, 0] and t.positions.tolist() == [16, 15, 16, 17, 0, 0]
    assert t.slot_mapping.tolist() == [
        int(t.block_tables[2, 1]) * 16,
        first * 16 + 15,
        second * 16,
        second * 16 + 1,
        -1,
        -1,
    ]


def test_store_tokens(device):
    last_tokens, expected = ints([1, 2, 3, 4], device), ints([1, 2, 3, 4], device)
    rows, token_ids = ints([2, -1, 0, 1], device), ints([70, 80, -1, 90], device)
    ops.store_tokens(last_tokens, rows, token_ids)
    reference.store_tokens(expected, rows, token_ids)
    assert last_tokens.tolist() == expected.tolist() == [1, 90, 70, 4]


def test_update_block_tables(device):
    tables = torch.zeros(3, 8, dtype=torch.int32, device=device)[:, :5]
    entries = ints([[0, 0, 7], [2, 4, 9], [-1, 0, 5], [0, 1, 8]], device)
    ops.update_block_tables(tables, entries)
    assert tables.tolist() == [[7, 8, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 9]]
    ops.update_block_tables(tables, entries[:0])
    assert tables.sum() == 24


def test_gather_rows(device, dtype):
    x = torch.randn(9, 104).to(device, dtype)[:, :72]  # rows 16-byte aligned, as every row tensor's
    indices = ints([8, 0, 0, 5], device)
    assert same_bits(ops.gather_rows(x, indices), reference.gather_rows(x, indices))
    assert ops.gather_rows(x, indices[:0]).shape == (0, 72)
