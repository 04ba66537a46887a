"""copy_blocks and swap_blocks: whole blocks, every part, nothing else."""

from __future__ import annotations

import pytest
import torch
from oracle import same_bits

from pyengine import ops
from pyengine.ops import reference


def arena(num_parts, num_blocks, device="cpu", block=(2, 16, 8)):
    return torch.randn(num_parts, num_blocks, *block).to(device, torch.bfloat16)


@pytest.mark.parametrize("num_parts", [1, 6])
def test_copy_blocks(device, num_parts):
    blocks = arena(num_parts, 9, device)
    expected = blocks.clone()
    pairs = torch.tensor([[0, 3], [8, 1], [0, 5], [2, -1], [-1, -1]], dtype=torch.int32, device=device)
    reference.copy_blocks(expected, pairs)
    ops.copy_blocks(blocks, pairs)
    assert same_bits(blocks, expected)


def test_copy_blocks_block_major_view(device):
    """The arena [num_blocks, num_parts, ...] seen as [num_parts, num_blocks, ...]."""
    blocks = arena(7, 4, device).transpose(0, 1)
    expected = blocks.clone()
    pairs = torch.tensor([[6, 0], [1, 2]], dtype=torch.int32, device=device)
    reference.copy_blocks(expected, pairs)
    ops.copy_blocks(blocks, pairs)
    assert same_bits(blocks, expected)


def test_copy_no_blocks(device):
    blocks = arena(2, 3, device)
    before = blocks.clone()
    ops.copy_blocks(blocks, torch.empty(0, 2, dtype=torch.int32, device=device))
    assert same_bits(blocks, before)


def test_swap_blocks_out_and_in(device):
    on_device, on_host = (
        arena(4, 6, device),
        torch.zeros(4, 3, 2, 16, 8, dtype=torch.bfloat16, pin_memory=device == "cuda"),
    )
    original = on_device.clone()
    ops.swap_blocks(on_host, on_device, torch.tensor([[5, 0], [1, 2]], dtype=torch.int32))
    on_device.zero_()
    ops.swap_blocks(on_device, on_host, torch.tensor([[0, 4], [2, 1], [1, 0]], dtype=torch.int32))
    assert same_bits(on_device[:, 4], original[:, 5]) and same_bits(on_device[:, 1], original[:, 1])
    assert (on_device[:, [0, 2, 3, 5]] == 0).all()


def test_swap_blocks_refuses_blocks_outside(device):
    with pytest.raises(RuntimeError, match=r"swap_blocks: pair 1 \(0 -> 7\) is outside src's 4 or dst's 6 blocks"):
        ops.swap_blocks(arena(1, 6, device), arena(1, 4), torch.tensor([[0, 0], [0, 7]], dtype=torch.int32))


def test_blocks_must_be_multiples_of_16_bytes(device):
    pairs = torch.zeros(1, 2, dtype=torch.int32, device=device)
    with pytest.raises(
        RuntimeError,
        match="copy_blocks: arena must have blocks and strides that are multiples of 16 bytes, got blocks of 6",
    ):
        ops.copy_blocks(arena(2, 3, device, block=(1, 1, 3)), pairs)
