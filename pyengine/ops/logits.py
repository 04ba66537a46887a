"""What happens to logits between the head and the draw: penalties, biases, masks; and log-probabilities.

Each stage edits a row in place from that row's own state and leaves rows that do not use it untouched, bit by bit.
Part of ``pyengine.ops``, where the common contract stands; csrc/include/pe/logits.h is the full definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

_C = torch.ops.pyengine  # loaded by pyengine.ops
_apply_penalties, _count_tokens = _C.apply_penalties.default, _C.count_tokens.default
_reset_history, _apply_bias, _apply_mask = _C.reset_history.default, _C.apply_bias.default, _C.apply_mask.default
_logprobs, _logprobs_workspace_bytes = _C.logprobs.default, _C.logprobs_workspace_bytes.default


def apply_penalties(
    logits: Tensor, state_rows: Tensor, history: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> None:
    """Penalise the tokens that a row has seen: repetition (arXiv 1909.05858) over prompt and output, OpenAI's frequency
    and presence penalties over the output alone.

    Args:
        logits: row tensor [num_rows, vocab_size] float32, edited in place.
        state_rows: [num_rows] which row of the state belongs to row b; -1: the row is not touched.
        history: row tensor [num_states, vocab_size] uint16, written by ``reset_history`` and ``count_tokens``: 0x8000
            for a token of the prompt, plus how often it was generated, at most 0x7fff.
        repetition: [num_states] float32, positive; 1 is off.
        frequency, presence: [num_states] float32; 0 is off.
    """
    _apply_penalties(logits, state_rows, history, repetition, frequency, presence)


def count_tokens(history: Tensor, state_rows: Tensor, token_ids: Tensor) -> None:
    """Note that ``token_ids[b]`` was generated in ``history[state_rows[b]]``; a negative row or an id outside the
    vocabulary is ignored. ``state_rows`` [num_rows] are distinct where not negative. Counts saturate at 0x7fff."""
    _count_tokens(history, state_rows, token_ids)


def reset_history(history: Tensor, row: int, token_ids: Tensor, num_prompt: int) -> None:
    """``history[row]`` becomes the counts of ``token_ids`` [num_tokens] int32, the first ``num_prompt`` of which only
    mark the prompt bit; ids outside the vocabulary are ignored.

    Raises:
        RuntimeError: there is no such row, or num_prompt exceeds num_tokens.
    """
    _reset_history(history, row, token_ids, num_prompt)


def apply_bias(logits: Tensor, entries: Tensor, values: Tensor) -> None:
    """``logits[row, token] += value`` for each entry; -inf bans a token.

    Args:
        logits: row tensor [num_rows, vocab_size] float32, edited in place.
        entries: [num_entries, 2] row and token, no pair twice; what is outside the logits (row -1: padding) is ignored.
        values: [num_entries] float32.
    """
    _apply_bias(logits, entries, values)


def apply_mask(logits: Tensor, mask_rows: Tensor, masks: Tensor) -> None:
    """Logits become -inf where the row's mask has no bit.

    Args:
        logits: row tensor [num_rows, vocab_size] float32, edited in place.
        mask_rows: [num_rows] which mask belongs to row b; -1: the row is not touched.
        masks: row tensor [num_masks, num_words] int32; token v is bit v % 32 of word v // 32, and forbidden past the
            last word.
    """
    _apply_mask(logits, mask_rows, masks)


def logprobs(logits: Tensor, target_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The log-softmax at each row's target and at its ``k`` largest logits, lowest id first among equals.

    A row with a NaN, +inf or no finite logit gets NaN for log-probabilities; its ids and ranks mean nothing.

    Args:
        logits: row tensor [num_rows, vocab_size] float32.
        target_ids: [num_rows]; outside the vocabulary (-1): padding, the row's results are undefined.
        k: 0 to 64.

    Returns:
        target_logprobs [num_rows] float32; target_ranks [num_rows] int32, 1 + the number of strictly larger logits;
        top_ids [num_rows, k] int32 and top_logprobs [num_rows, k] float32, -1 and -inf past the vocabulary's size.

    Raises:
        RuntimeError: k is out of range.
    """
    num_rows, vocab_size = logits.shape
    target_logprobs = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    target_ranks = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    top_ids = torch.empty((num_rows, k), dtype=torch.int32, device=logits.device)
    top_logprobs = torch.empty((num_rows, k), dtype=torch.float32, device=logits.device)
    workspace = None
    if logits.is_cuda:
        num_bytes = _logprobs_workspace_bytes(num_rows, vocab_size, k)
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device=logits.device)
    _logprobs(target_logprobs, target_ranks, top_ids, top_logprobs, logits, target_ids, workspace)
    return target_logprobs, target_ranks, top_ids, top_logprobs
