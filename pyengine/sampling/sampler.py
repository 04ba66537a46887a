"""The sampler: runs the stages in order, draws, and reads log-probabilities for those who asked.

    raw logits ──▶ penalties ──▶ biases ──▶ bad words ──▶ masks, grammars ──▶ filters, draw ──▶ token ──▶ counted
        └───────────────────────────── log-probabilities of the token and the likeliest ◀───────────┘

Log-probabilities are of the raw logits, before any stage, as vLLM's are by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.sampling.bad_words import BadWords
from pyengine.sampling.biases import Biases
from pyengine.sampling.masks import GrammarMasks, Masks, apply_grammar
from pyengine.sampling.penalties import Penalties
from pyengine.sampling.stage import RowFlags, SamplingStep, Upload
from pyengine.sched.step import NewRow


@dataclass(frozen=True)
class LogprobTensors:
    """For the batch rows ``indices``, of which each wants ``counts`` of the likeliest (both host): see ops.logprobs."""

    indices: np.ndarray
    counts: np.ndarray
    target_logprobs: Tensor
    target_ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def map(self, move: Callable[[Tensor], Tensor]) -> LogprobTensors:
        tensors = (self.target_logprobs, self.target_ranks, self.top_ids, self.top_logprobs)
        return LogprobTensors(self.indices, self.counts, *map(move, tensors))


@dataclass(frozen=True)
class _RawRows:
    """Raw logits float32 [num_wanted, vocab_size] of the batch rows ``indices`` (host), ``on_device`` int32, where None
    means all rows.
    """

    indices: np.ndarray
    on_device: Tensor | None
    logits: Tensor


@dataclass(frozen=True)
class Sampled:
    """token_ids int32 [num_seqs], undefined where nothing is sampled; logprobs None when nobody asked."""

    token_ids: Tensor
    logprobs: LogprobTensors | None = None


class Sampler:
    """State of all rows on ``device``; ``assign`` when a row changes owner, ``sample`` once per step."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device, upload: Upload):
        shape = (max_num_seqs, vocab_size)
        self._upload = upload
        self._draw = _DrawRows(max_num_seqs, device, upload)
        # Stages that must see what was drawn.
        self._counting = (Penalties(shape, device, upload), BadWords(max_num_seqs, device, upload))
        penalties, bad_words = self._counting
        self._stages = (penalties, Biases(max_num_seqs, upload), bad_words, Masks(shape, device, upload))
        self._wants_logprobs = RowFlags(max_num_seqs)
        self._num_logprobs = np.zeros(max_num_seqs, np.int32)

    def assign(self, new_rows: tuple[NewRow, ...]) -> None:
        for new in new_rows:
            for stage in self._stages:
                stage.assign(new)
            self._wants_logprobs.set(new.row, new.params.logprobs is not None)
            self._num_logprobs[new.row] = new.params.logprobs or 0
        self._draw.assign(new_rows)

    def sample(
        self, logits: Tensor, sample_rows: Tensor, positions: Tensor, step: SamplingStep, grammar: GrammarMasks | None
    ) -> Sampled:
        """Draw a token for each sampling row.

        Args:
            logits: float32 [num_seqs, vocab_size]; edited in place.
            sample_rows, positions: int32 [num_seqs] on the device: ``step``'s arrays, padding included.
            step: the same for the host, without padding.
            grammar: what the grammars of this step allow; None when no sequence has one.
        """
        active = [stage for stage in self._stages if stage.uses(step)]
        live = logits[: len(step.rows)]
        wanted = None
        if self._wants_logprobs.any(step):
            wanted = self._raw_rows(live, step, edited=bool(active or grammar))
        for stage in active:
            stage.apply(live, step)
        if grammar is not None:
            apply_grammar(live, grammar, self._upload)
        rows = self._draw
        token_ids = ops.sample(
            logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seeds, positions, sample_rows
        )
        for stage in self._counting:
            if stage in active:
                stage.count(token_ids[: len(step.rows)], step)
        return Sampled(token_ids, None if wanted is None else self._logprobs(wanted, token_ids, step))

    def _raw_rows(self, live: Tensor, step: SamplingStep, edited: bool) -> _RawRows:
        """The rows whose log-probabilities are wanted, as they are before any stage: a copy of them, and of no others,
        unless all are and none will be ``edited``.
        """
        indices = np.flatnonzero(self._wants_logprobs.select(step))
        if len(indices) == len(live) and not edited:
            return _RawRows(indices, None, live)
        on_device = self._upload(indices.astype(np.int32))
        return _RawRows(indices, on_device, ops.gather_rows(live, on_device))

    def _logprobs(self, wanted: _RawRows, token_ids: Tensor, step: SamplingStep) -> LogprobTensors:
        counts = self._num_logprobs[step.rows[wanted.indices]]
        drawn = token_ids[: len(wanted.logits)] if wanted.on_device is None else token_ids[wanted.on_device.long()]
        return LogprobTensors(wanted.indices, counts, *ops.logprobs(wanted.logits, drawn, int(counts.max())))


class _DrawRows:
    """Parameters of the draw, each [max_num_seqs], in one buffer: sent whole when a row changes owner (a few
    kilobytes).

    seeds (int64, the bits of a uint64), temperature (float32; 0: greedy), top_k (int32), top_p, min_p (float32).
    """

    def __init__(self, max_num_seqs: int, device: torch.device, upload: Upload):
        self._upload = upload
        self._words = np.zeros(6 * max_num_seqs, np.int32)
        self._host = _draw_columns(self._words)
        self._host["top_p"][:] = 1
        self._on_device = torch.from_numpy(self._words.copy()).to(device)
        columns = _draw_columns(self._on_device)
        self.seeds, self.temperature = columns["seeds"], columns["temperature"]
        self.top_k, self.top_p, self.min_p = columns["top_k"], columns["top_p"], columns["min_p"]

    def assign(self, new_rows: tuple[NewRow, ...]) -> None:
        for new in new_rows:
            for name in ("temperature", "top_k", "top_p", "min_p"):
                self._host[name][new.row] = getattr(new.params, name)
            self._host["seeds"][new.row] = new.seed
        if new_rows:
            self._on_device.copy_(self._upload(self._words))


def _draw_columns(words: np.ndarray | Tensor) -> dict:
    """Views of the parameters in ``words`` int32 [6 * max_num_seqs], an array or a tensor; the wide one first."""
    n = len(words) // 6
    lib = np if isinstance(words, np.ndarray) else torch
    return {
        "seeds": words[: 2 * n].view(lib.int64),
        "temperature": words[2 * n : 3 * n].view(lib.float32),
        "top_k": words[3 * n : 4 * n],
        "top_p": words[4 * n : 5 * n].view(lib.float32),
        "min_p": words[5 * n :].view(lib.float32),
    }
