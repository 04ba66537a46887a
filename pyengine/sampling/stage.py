"""What a sampler stage is told about a step, and what it must offer.

A stage keeps state per device row, set when a row changes owner. In a step it looks at its own host flags first: when
no sampling row uses it, it issues nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pyengine.sched.step import NewRow

# Host array to device tensor, valid for this step, without waiting for the device.
Upload = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True, slots=True)
class SamplingStep:
    """The sampling side of one step; index i is the batch row, as in the logits.

    Attributes:
        rows: int32 [num_seqs] device row, -1 where nothing is sampled (padding, unfinished prompts).
        positions: int32 [num_seqs] absolute position that the sampled token will have.
    """

    rows: np.ndarray
    positions: np.ndarray


class Stage(Protocol):
    """One edit of the logits before the draw."""

    def assign(self, new: NewRow) -> None:
        """A row has a new owner."""

    def uses(self, step: SamplingStep) -> bool:
        """Whether any sampling row of this step needs the stage."""

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        """Edit ``logits`` float32 [num_seqs, vocab_size] in place; called only when ``uses``."""


class RowFlags:
    """Which device rows use a stage; an answer for a whole step costs one gather, none at all while no row does."""

    def __init__(self, max_num_seqs: int):
        self._on = np.zeros(max_num_seqs, bool)
        self._count = 0

    def set(self, row: int, on: bool) -> None:
        self._count += int(on) - int(self._on[row])
        self._on[row] = on

    def any(self, step: SamplingStep) -> bool:
        return self._count > 0 and bool(self.select(step).any())

    def select(self, step: SamplingStep) -> np.ndarray:
        """bool [num_seqs]: sampling rows of the step that use the stage."""
        return (step.rows >= 0) & self._on[step.rows]

    def rows(self, step: SamplingStep) -> np.ndarray:
        """int32 [num_seqs]: the device row where it uses the stage, else -1."""
        return np.where(self.select(step), step.rows, -1).astype(np.int32)
