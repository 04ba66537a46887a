"""Repetition, frequency and presence penalties over the tokens that a row has seen.

The counts live on the device, because the newest token does: it is counted there right after it was drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.sampling.stage import RowFlags, SamplingStep, Upload
from pyengine.sched.step import NewRow


class Penalties:
    """History is uint16 counts [max_num_seqs, vocab_size], allocated when the first row asks for a penalty."""

    def __init__(self, shape: tuple[int, int], device: torch.device, upload: Upload):
        self._device = device
        self._upload = upload
        self._shape = shape
        self._flags = RowFlags(shape[0])
        self._history: Tensor | None = None
        self._factors = np.zeros((3, shape[0]), np.float32)  # repetition, frequency, presence
        self._factors_on_device: Tensor | None = None

    def assign(self, new: NewRow) -> None:
        params = new.params
        factors = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        self._flags.set(new.row, params.has_penalties)
        if not params.has_penalties:
            return
        if self._history is None:
            self._history = torch.zeros(self._shape, dtype=torch.uint16, device=self._device)
            self._factors_on_device = torch.zeros(self._factors.shape, device=self._device)
        self._factors[:, new.row] = factors
        self._factors_on_device.copy_(self._upload(self._factors))
        token_ids = self._upload(np.asarray(new.token_ids, np.int32))
        ops.reset_history(self._history, new.row, token_ids, new.num_prompt_tokens)

    def uses(self, step: SamplingStep) -> bool:
        return self._flags.any(step)

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        repetition, frequency, presence = self._factors_on_device
        ops.apply_penalties(logits, self._state_rows(step), self._history, repetition, frequency, presence)

    def count(self, token_ids: Tensor, step: SamplingStep) -> None:
        """Note what was drawn; ``token_ids`` int32 [num_seqs] on the device."""
        ops.count_tokens(self._history, self._state_rows(step), token_ids)

    def _state_rows(self, step: SamplingStep) -> Tensor:
        return self._upload(self._flags.rows(step))
