"""Masks: tokens outside what a row allows cannot be drawn.

A grammar's mask comes from the host with every step, computed while the device runs the pass.
``allowed_token_ids`` fills a row's mask once, when the request gets the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.sampling.stage import RowFlags, SamplingStep, Upload
from pyengine.sched.step import NewRow


class Masks:
    """Bit masks int32 [max_num_seqs, ceil(vocab_size / 32)], allocated when the first row has a list."""

    def __init__(self, shape: tuple[int, int], device: torch.device, upload: Upload):
        self._device = device
        self._upload = upload
        self._shape = (shape[0], -(-shape[1] // 32))
        self._flags = RowFlags(shape[0])
        self._masks: Tensor | None = None

    def assign(self, new: NewRow) -> None:
        allowed = new.params.allowed_token_ids
        self._flags.set(new.row, allowed is not None)
        if allowed is None:
            return
        if self._masks is None:
            self._masks = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        self._masks[new.row].copy_(self._upload(pack_bits(np.asarray(allowed), self._shape[1])))

    def uses(self, step: SamplingStep) -> bool:
        return self._flags.any(step)

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        ops.apply_mask(logits, self._upload(self._flags.rows(step)), self._masks)


@dataclass(frozen=True)
class GrammarMasks:
    """For the batch rows ``indices`` (host): masks ``rows`` int32 [len(indices), ceil(vocab_size / 32)] on the host, in
    pinned memory where there is a GPU.
    """

    indices: np.ndarray
    rows: Tensor


class GrammarMaskRing:
    """Memory for the masks of ``num_steps`` steps, more than may be in flight; allocated when the first grammar comes.

    Args:
        shape: max_num_seqs, vocab_size.
    """

    def __init__(self, shape: tuple[int, int], num_steps: int, device: torch.device):
        self._shape = (shape[0], -(-shape[1] // 32))
        self._num_steps = num_steps
        self._pinned = device.type == "cuda"
        self._turn = 0

    def take(self, indices: np.ndarray) -> GrammarMasks:
        """Masks of these batch rows, to be filled."""
        self._turn = (self._turn + 1) % self._num_steps
        return GrammarMasks(indices, self._buffers[self._turn][: len(indices)])

    @cached_property
    def _buffers(self) -> list[Tensor]:
        num_steps, shape = self._num_steps, self._shape
        return [torch.empty(shape, dtype=torch.int32, pin_memory=self._pinned) for _ in range(num_steps)]


def apply_grammar(logits: Tensor, grammar: GrammarMasks, upload: Upload) -> None:
    """Forbid what the grammars of these rows do not allow next."""
    mask_rows = np.full(len(logits), -1, np.int32)
    mask_rows[grammar.indices] = np.arange(len(grammar.indices))
    ops.apply_mask(logits, upload(mask_rows), grammar.rows.to(logits.device, non_blocking=True))


def pack_bits(token_ids: np.ndarray, num_words: int) -> np.ndarray:
    """int32 [num_words] with bit v % 32 of word v // 32 set for each token v."""
    bits = np.zeros(num_words * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
