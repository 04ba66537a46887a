"""One generation on the host: its tokens, how far they are computed, where its KV lives.

    token_ids   [prompt ............................][output ........]  + num_inflight tokens the host has not seen yet
    KV cache    [computed .................)[this step ..)

``num_computed_tokens`` chases ``num_tokens``; there is no prefill or decode phase, only how far behind a sequence is.
"""

from __future__ import annotations

import enum
from typing import Protocol

from pyengine.kv.prefix_cache import BlockKey
from pyengine.protocol import Pooling, Request


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Grammar(Protocol):
    """What a sequence's output must match (structured.matcher)."""

    ready: bool
    error: str
    complete: bool
    constrains: bool

    def accept(self, token_id: int) -> bool: ...

    def allowed_ids(self) -> set[int]: ...


class Sequence:
    """Mutable host truth of sequence ``index`` of a request; changed only by the scheduler and the block manager."""

    __slots__ = (
        "arrival",
        "block_keys",
        "block_table",
        "cache_salt",
        "decoding",
        "grammar",
        "index",
        "max_tokens",
        "num_cached_tokens",
        "num_committed_blocks",
        "num_computed_tokens",
        "num_inflight",
        "num_preemptions",
        "num_prompt_tokens",
        "num_read_tokens",
        "parent",
        "request",
        "row",
        "status",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(self, request: Request, index: int, arrival: int, max_tokens: int):
        params = request.params
        self.request = request
        self.index = index
        self.arrival = arrival  # admission order among equals
        self.max_tokens = max_tokens  # output tokens at most
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.cache_salt = request.cache_salt
        self.stop_token_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else frozenset(request.eos_token_ids)
        )
        self.parent: Sequence | None = None  # whose prompt blocks a sibling waits to share
        self.grammar: Grammar | None = None
        self.status = Status.WAITING
        self.row = -1  # device row while running
        self.decoding = False  # one token behind, its row holds that token; see sched.decodes for the next two fields
        self.num_computed_tokens = 0  # tokens whose KV is computed or scheduled
        self.num_inflight = 0  # sampled tokens not yet seen by the host
        self.num_preemptions = 0
        self.num_read_tokens = 0  # prompt tokens whose hidden states have told what was wanted of them
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache on first admission
        self.block_table: list[int] = []
        self.block_keys: list[BlockKey] = []  # of full blocks of known tokens; survives preemption
        self.num_committed_blocks = 0

    @property
    def grammar_ready(self) -> bool:
        """Whether nothing is missing for the first draw."""
        return self.grammar is None or self.grammar.ready

    @property
    def num_tokens(self) -> int:
        """Tokens whose values the host knows."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled, in-flight ones included."""
        return len(self.token_ids) + self.num_inflight - self.num_computed_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are wanted and not all there; the first of n has them for all."""
        wanted = self.request.params.prompt_logprobs is not None and self.index == 0
        return wanted and self.num_read_tokens < self.num_prompt_tokens - 1

    @property
    def num_cacheable_tokens(self) -> int:
        """Leading tokens whose KV is all that is wanted of them, so that cached blocks may stand in for them."""
        if self.request.pooling is Pooling.MEAN:
            return 0
        return self.num_read_tokens if self.scores_prompt else len(self.token_ids)

    @property
    def sort_key(self) -> tuple[int, int]:
        """Order of service: priority (lower first), then arrival. The largest key is preempted first."""
        return (self.request.priority, self.arrival)

    @property
    def seed(self) -> int:
        """This sequence's own 64-bit seed, as a signed integer; a different one for each of the n."""
        mixed = ((self.request.params.seed or 0) + self.index * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        return mixed - (1 << 64) if mixed >> 63 else mixed
