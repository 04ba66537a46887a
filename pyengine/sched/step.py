"""The border between scheduler and runner: one frozen decision down, one frozen result up, all flat integer arrays.

This is the only module that both sides import. A step of 256 decodes is a few kilobytes, so it can cross a process
border to other ranks unchanged. The order of sequences in ``rows`` is the order of the batch everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pyengine.protocol import TokenLogprob
from pyengine.sampling_params import SamplingParams


def int32(values: object = ()) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def pairs(values: list[tuple[int, int]]) -> np.ndarray:
    """int32 [N, 2]; the same empty array whenever there are none."""
    return int32(values) if values else NO_PAIRS


NO_PAIRS = int32().reshape(0, 2)


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence takes a device row: what the row must know before the first token is computed.

    Attributes:
        seed: the sequence's own 64-bit seed (already mixed with its index among n).
        num_prompt_tokens: where its output begins.
        stop_token_ids: tokens that end it.
        token_ids: all its tokens so far, for a sampler that needs them (penalties, bad words); else empty.
    """

    row: int
    params: SamplingParams
    seed: int
    num_prompt_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRead:
    """Tokens of a chunk of a prompt whose hidden states score the tokens behind them.

    Attributes:
        batch_row: of the sequence.
        first: index within the chunk of the first token that is read.
        target_ids: the token behind each token that is read.
        num_logprobs: how many of the likeliest to report with each.
    """

    batch_row: int
    first: int
    target_ids: tuple[int, ...]
    num_logprobs: int


@dataclass(frozen=True, slots=True)
class PoolRead:
    """Tokens of a chunk of a prompt whose hidden states are added up.

    Attributes:
        batch_row, row: of the sequence in the step, and its device row.
        first: index within the chunk of the first token that is added.
        num_tokens: how many are.
        begins: nothing was added before.
        divisor: the sum over so many is wanted after this step; 0: more is to come.
    """

    batch_row: int
    row: int
    first: int
    num_tokens: int
    begins: bool
    divisor: int


@dataclass(frozen=True, slots=True)
class PromptReads:
    """What a step reads of prompts; false when it reads nothing."""

    scores: tuple[ScoreRead, ...] = ()
    pools: tuple[PoolRead, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.scores or self.pools)


@dataclass(frozen=True, slots=True)
class StepInput:
    """The scheduler's whole decision for one forward pass. S sequences, T = sum(num_new_tokens) tokens.

        tokens of one sequence:   [0, num_computed) in the cache   [num_computed, num_computed + num_new) this step

    Attributes:
        step_id: counts from 0.
        rows: int32 [S] device row of each sequence, the batch order.
        num_new_tokens: int32 [S], >= 1.
        num_computed_tokens: int32 [S].
        prompt_offsets: int32 [S] where the sequence's tokens of this step begin in prompt_ids; -1: its one token is
            the last
            sampled one, which the device row holds.
        prompt_ids: int32 [sum of new tokens of sequences with offset >= 0].
        samples: bool [S] whether the sequence's logits are wanted (its tokens are complete after this step).
        block_entries: int32 [N, 3] (row, index, block id) appended to the block tables before the pass.
        swaps_out: int32 [N, 2] (device block, host block), copied first of all.
        swaps_in: int32 [N, 2] (host block, device block), copied after those.
        copies: int32 [C, 2] (src block, dst block) copied after the swaps and before the pass.
        new_rows: rows that changed owner since the last step.
        reads: what is wanted of prompts besides their KV.
    """

    step_id: int
    rows: np.ndarray
    num_new_tokens: np.ndarray
    num_computed_tokens: np.ndarray
    prompt_offsets: np.ndarray
    prompt_ids: np.ndarray
    samples: np.ndarray
    block_entries: np.ndarray
    copies: np.ndarray
    new_rows: tuple[NewRow, ...] = field(default=())
    swaps_out: np.ndarray = field(default_factory=lambda: NO_PAIRS)
    swaps_in: np.ndarray = field(default_factory=lambda: NO_PAIRS)
    reads: PromptReads = field(default=PromptReads())

    @property
    def num_tokens(self) -> int:
        return int(self.num_new_tokens.sum())


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the pass produced, for the true entries of ``samples`` in batch order.

    Attributes:
        token_ids: int32 [num_sampled]; -1 where the logits were not finite.
        logprobs: by index into token_ids, of the sequences that asked for them.
        prompt_scores: a list for each of ``reads.scores``, with an entry for each of its tokens.
        pooled: float32 [num_ended, hidden_size], for those of ``reads.pools`` that end; None without any.
    """

    step_id: int
    token_ids: np.ndarray
    logprobs: Mapping[int, TokenLogprob] = field(default_factory=dict)
    prompt_scores: tuple[list[TokenLogprob], ...] = ()
    pooled: np.ndarray | None = None
