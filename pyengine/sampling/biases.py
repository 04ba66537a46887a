"""Biases of single tokens: ``logit_bias``, and the ban on ending before ``min_tokens``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyengine import ops
from pyengine.sampling.stage import RowFlags, SamplingStep, Upload
from pyengine.sched.step import NewRow


@dataclass(frozen=True, slots=True)
class _RowBias:
    """What a row adds: ``always``, and while the sampled position is before ``until`` also the bans of ``early``."""

    always: dict[int, float]
    early: dict[int, float]
    until: int


class Biases:
    """Entries are gathered on the host and sent with the step: rows that use them are few, and so are their entries."""

    def __init__(self, max_num_seqs: int, upload: Upload):
        self._upload = upload
        self._flags = RowFlags(max_num_seqs)
        self._rows: dict[int, _RowBias] = {}

    def assign(self, new: NewRow) -> None:
        params = new.params
        used = bool(params.logit_bias) or params.min_tokens > 0
        self._flags.set(new.row, used)
        self._rows.pop(new.row, None)
        if used:
            always = dict(params.logit_bias or {})
            early = {**always, **dict.fromkeys(new.stop_token_ids, float("-inf"))}
            self._rows[new.row] = _RowBias(always, early, new.num_prompt_tokens + params.min_tokens)

    def uses(self, step: SamplingStep) -> bool:
        return self._flags.any(step)

    def apply(self, logits: Tensor, step: SamplingStep) -> None:
        entries, values = [], []
        for i in np.flatnonzero(self._flags.select(step)).tolist():
            bias = self._rows[int(step.rows[i])]
            added = bias.early if step.positions[i] < bias.until else bias.always
            entries += [(i, token_id) for token_id in added]
            values += added.values()
        if entries:
            ops.apply_bias(
                logits, self._upload(np.asarray(entries, np.int32)), self._upload(np.asarray(values, np.float32))
            )
