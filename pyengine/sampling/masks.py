"""Masks: tokens outside what a row allows cannot be drawn.

A grammar's mask comes from the host with every step, computed while the device runs the pass.
``allowed_token_ids`` fills a row's mask once, when the request gets the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.sampling.stage import RowFlags, SamplingStep
from pyengine.sched.step import NewRow


class Masks:
    """Bit masks int32 [max_num_seqs, ceil(vocab_size / 32)], allocated when the first row has a list."""

    def __init__(self, device: torch.device, max_num_seqs: int, vocab_size: int):
        self._device = device
        self._shape = (max_num_seqs, -(-vocab_size // 32))
        self._flags = RowFlags(max_num_seqs)
        self._masks: Tensor | None = None

    def assign(self, new: NewRow) -> None:
        allowed = new.params.allowed_token_ids
        self._flags.set(new.row, allowed is not None)
        if allowed is None:
            return
        if self._masks is None:
            self._masks = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        self._masks[new.row].copy_(torch.from_numpy(pack_bits(np.asarray(allowed), self._shape[1])))

    def uses(self, step: SamplingStep) -> bool:
        return self._flags.any(step)

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        ops.apply_mask(logits, torch.from_numpy(self._flags.rows(step)).to(self._device), self._masks)


@dataclass(frozen=True)
class GrammarMasks:
    """For the batch rows ``indices``: masks int32 [len(indices), ceil(vocab_size / 32)], both on the host."""

    indices: np.ndarray
    masks: np.ndarray


def apply_grammar(logits: Tensor, grammar: GrammarMasks) -> None:
    """Forbid what the grammars of these rows do not allow next."""
    mask_rows = np.full(len(logits), -1, np.int32)
    mask_rows[grammar.indices] = np.arange(len(grammar.indices))
    on_device = (torch.from_numpy(array).to(logits.device) for array in (mask_rows, grammar.masks))
    ops.apply_mask(logits, *on_device)


def pack_bits(token_ids: np.ndarray, num_words: int) -> np.ndarray:
    """int32 [num_words] with bit v % 32 of word v // 32 set for each token v."""
    bits = np.zeros(num_words * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
