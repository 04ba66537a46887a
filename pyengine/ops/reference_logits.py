"""The stages between head and draw in plain torch, row by row: part of ``pyengine.ops.reference``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PROMPT_BIT, _MAX_COUNT = 0x8000, 0x7FFF


def apply_penalties(
    logits: Tensor, state_rows: Tensor, history: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> None:
    """Rounds each operation; the op may fuse the product of frequency and count with its subtraction."""
    for b, r in enumerate(state_rows.tolist()):
        if r < 0:
            continue
        seen = history[r].int()
        count = seen & _MAX_COUNT
        x = logits[b]
        penalised = torch.where(x > 0, x / repetition[r], x * repetition[r])
        penalised = penalised - frequency[r] * count - presence[r] * (count > 0)
        logits[b] = torch.where(seen != 0, penalised, x)


def count_tokens(history: Tensor, state_rows: Tensor, token_ids: Tensor) -> None:
    for r, token in zip(state_rows.tolist(), token_ids.tolist(), strict=True):
        if r >= 0 and 0 <= token < history.shape[1]:
            history[r, token] = _counted(int(history[r, token]))


def reset_history(history: Tensor, row: int, token_ids: Tensor, num_prompt: int) -> None:
    counts: dict[int, int] = {}
    for i, token in enumerate(token_ids.tolist()):
        before = counts.get(token, 0)
        counts[token] = before | _PROMPT_BIT if i < num_prompt else _counted(before)
    history[row] = torch.zeros(history.shape[1], dtype=torch.uint16)
    for token, count in counts.items():
        if 0 <= token < history.shape[1]:
            history[row, token] = count


def _counted(history: int) -> int:
    return history + (history & _MAX_COUNT < _MAX_COUNT)


def apply_bias(logits: Tensor, entries: Tensor, values: Tensor) -> None:
    num_rows, vocab_size = logits.shape
    for (row, token), value in zip(entries.tolist(), values, strict=True):
        if 0 <= row < num_rows and 0 <= token < vocab_size:
            logits[row, token] += value


def apply_mask(logits: Tensor, mask_rows: Tensor, masks: Tensor) -> None:
    vocab_size = logits.shape[1]
    token = torch.arange(min(vocab_size, 32 * masks.shape[1]), device=logits.device)
    for b, r in enumerate(mask_rows.tolist()):
        if r >= 0:
            forbidden = torch.ones(vocab_size, dtype=torch.bool, device=logits.device)
            forbidden[: len(token)] = masks[r][token // 32] >> (token % 32) & 1 == 0
            logits[b] = logits[b].masked_fill(forbidden, -math.inf)


def logprobs(logits: Tensor, target_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of padding hold zeros here; the op leaves them undefined. Given float64 logits, computes in float64."""
    num_rows, vocab_size = logits.shape
    target_logprobs, target_ranks = logits.new_zeros(num_rows), target_ids.new_zeros(num_rows)
    top_ids, top_logprobs = target_ids.new_zeros(num_rows, k), logits.new_zeros(num_rows, k)
    for b, target in enumerate(target_ids.tolist()):
        if not 0 <= target < vocab_size:
            continue
        row = logits[b]
        of_token = torch.log_softmax(row, dim=-1)
        if (row == math.inf).any() or (row == -math.inf).all():
            of_token = torch.full_like(row, math.nan)
        largest = row.sort(descending=True, stable=True).indices[:k]
        target_logprobs[b] = of_token[target]
        target_ranks[b] = 1 + (row > row[target]).sum()
        top_ids[b], top_logprobs[b] = -1, -math.inf
        top_ids[b, : len(largest)], top_logprobs[b, : len(largest)] = largest.int(), of_token[largest]
    return target_logprobs, target_ranks, top_ids, top_logprobs
