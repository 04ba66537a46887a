"""Rotary tables and the tokens of a step that rope_write_kv is tested with."""

from __future__ import annotations

import torch

MAX_POSITION = 200


def table(rotary_dim, device):
    angles = torch.outer(
        torch.arange(MAX_POSITION).double(), 10000.0 ** -(torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    )
    return torch.cat((angles.cos(), angles.sin()), dim=1).float().to(device)


def step(num_tokens, num_blocks, block_size, device):
    """Random positions and distinct slots; every third token is padding."""
    positions = torch.randint(0, MAX_POSITION, (num_tokens,), dtype=torch.int32)
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    slots[::3] = -1
    return positions.to(device), slots.to(device)
