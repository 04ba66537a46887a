"""The running sequences that decode, as arrays: a step of them costs numpy operations, not Python objects.

Nearly every step of nearly every sequence is alike: one token, written into a block the sequence already has, and not
its last. So nobody looks at a Sequence here unless something happens to it: a block is full, a token ends it, a token
has to be looked at (grammars), someone joins or leaves.

    num_computed = num_tokens + num_inflight - 1     holds for every member, always: it is one token behind

While a sequence is a member (``seq.decoding``) its ``num_computed_tokens`` and ``num_inflight`` live here; the object's
own fields are stale and are written back when it leaves. Its ``token_ids`` are always current.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pyengine.protocol import TokenDelta
from pyengine.sched.sequence import Sequence
from pyengine.sched.step import int32

MAX_STOPS = 7  # compared as arrays; a sequence with more stop tokens is looked at token by token
NOT_FINITE = -1  # what is sampled from logits that are not finite: ends a sequence as a stop token does


@dataclass(frozen=True, slots=True)
class Members:
    """What does not change while nobody joins or leaves. Never edited in place: a step in flight keeps its own.

    Attributes:
        names: request id and index; token_lists: the sequences' own ``token_ids``.
        rows: int32 [S] device rows.
        last: int32 [S] number of computed tokens before the step that samples the last token its limit allows.
        stops: int32 [S, 1 + MAX_STOPS] tokens that end it, NOT_FINITE among them.
        watched: bool [S] whether each of its tokens has to be looked at.
    """

    sequences: list[Sequence]
    names: list[tuple[str, int]]
    token_lists: list[list[int]]
    rows: np.ndarray
    last: np.ndarray
    stops: np.ndarray
    watched: np.ndarray

    @classmethod
    def of(cls, sequences: list[Sequence]) -> Members:
        stops = np.full((len(sequences), 1 + MAX_STOPS), NOT_FINITE, np.int32)
        for i, seq in enumerate(sequences):
            if len(seq.stop_token_ids) <= MAX_STOPS:
                stops[i, : len(seq.stop_token_ids)] = list(seq.stop_token_ids)
        return cls(
            list(sequences),
            [(seq.request.request_id, seq.index) for seq in sequences],
            [seq.token_ids for seq in sequences],
            int32([seq.row for seq in sequences]),
            int32([seq.num_prompt_tokens + seq.max_tokens - 2 for seq in sequences]),
            stops,
            np.asarray([seq.grammar is not None or len(seq.stop_token_ids) > MAX_STOPS for seq in sequences], bool),
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, indices: np.ndarray) -> Members:
        places = indices.tolist()
        lists = ([values[i] for i in places] for values in (self.sequences, self.names, self.token_lists))
        return Members(*lists, self.rows[indices], self.last[indices], self.stops[indices], self.watched[indices])

    def followed_by(self, other: Members) -> Members:
        lists = (a + b for a, b in zip(self._lists(), other._lists(), strict=True))
        arrays = (np.concatenate(pair) for pair in zip(self._arrays(), other._arrays(), strict=True))
        return Members(*lists, *arrays)

    def find_events(self, token_ids: np.ndarray, num_computed: np.ndarray) -> np.ndarray | None:
        """bool [S]: where a sampled token is more than one further token; None when all are just that.

        ``token_ids``, ``num_computed`` int32 [S], of the step that these members were.
        """
        stopped, ended = self.stops == token_ids[:, None], num_computed >= self.last
        if not (stopped.any() or ended.any() or self.watched.any()):
            return None
        return stopped.any(axis=1) | ended | self.watched

    def append(self, token_ids: list[int]) -> list[TokenDelta]:
        """Give each member its next token, of which there is nothing else to say."""
        deque(map(list.append, self.token_lists, token_ids), maxlen=0)
        return [
            TokenDelta(name, index, [token_id]) for (name, index), token_id in zip(self.names, token_ids, strict=True)
        ]

    def _lists(self) -> tuple[list, ...]:
        return self.sequences, self.names, self.token_lists

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.last, self.stops, self.watched


class Decodes:
    """All decoding sequences, in no particular order. ``settle`` before reading what others changed."""

    def __init__(self, block_size: int):
        self._block_size = block_size
        self._members = Members.of([])
        self._num_computed = int32()  # [S]
        self._capacity = int32()  # [S] tokens that the block table holds
        self._joining: list[Sequence] = []
        self._leaving = False
        self._num_quiet = 0  # steps to come in which every member computes a token and none needs a block
        self.num_left = 0  # how often somebody left: a step in flight learns whether its members are all here still

    def __len__(self) -> int:
        """Members, those included that join or leave with the next ``settle``."""
        return len(self._members) + len(self._joining)

    def join(self, seq: Sequence) -> None:
        """``seq`` has its whole known past computed or in flight, and alone holds the block it writes next."""
        seq.decoding = True
        self._joining.append(seq)

    def leave(self, seq: Sequence) -> None:
        """``seq`` ends or gives up its row; the truth about it is in its own fields again."""
        seq.decoding = False
        self.num_left += 1
        if seq in self._joining:
            self._joining.remove(seq)
        else:
            self._leaving = True
            self._write_back(self._members.sequences.index(seq))

    def settle(self) -> None:
        """Rebuild the arrays when somebody joined or left."""
        if not (self._leaving or self._joining):
            return
        if self._leaving:
            here = np.flatnonzero([seq.decoding for seq in self._members.sequences])
            self._members = self._members.take(here)
            self._num_computed, self._capacity = self._num_computed[here], self._capacity[here]
        joining = self._joining
        if joining:
            self._members = self._members.followed_by(Members.of(joining))
            computed = int32([seq.num_computed_tokens for seq in joining])
            capacity = int32([len(seq.block_table) * self._block_size for seq in joining])
            self._num_computed = np.concatenate((self._num_computed, computed))
            self._capacity = np.concatenate((self._capacity, capacity))
        self._leaving, self._joining, self._num_quiet = False, [], 0

    def num_wanting(self) -> int:
        """How many may sample another token."""
        return len(self._members) if self._num_quiet else int(np.count_nonzero(self._wanting()))

    @property
    def num_context(self) -> int:
        """Tokens that the members have in the cache."""
        return int(self._num_computed.sum())

    def take_full(self) -> list[Sequence]:
        """The members whose next token needs another block; the caller grants it or has them leave."""
        if self._num_quiet:
            return []
        full = np.flatnonzero((self._num_computed >= self._capacity) & self._wanting())
        self._capacity[full] += self._block_size
        return [self._write_back(i) for i in full.tolist()]

    def advance(self) -> tuple[Members, np.ndarray]:
        """All members that may sample another token do so; who they are, and how much was computed before."""
        self.settle()
        members, num_computed = self._members, self._num_computed
        if not self._num_quiet and len(members):
            wanting = self._wanting()
            if not wanting.all():
                chosen = np.flatnonzero(wanting)
                self._num_computed = num_computed + wanting
                return members.take(chosen), num_computed[chosen]
            self._num_quiet = int((np.minimum(self._capacity, members.last + 1) - num_computed).min())
        self._num_computed = num_computed + 1
        self._num_quiet = max(self._num_quiet - 1, 0)
        return members, num_computed

    def _wanting(self) -> np.ndarray:
        """bool [S]: whose last token is not in flight already."""
        return self._num_computed <= self._members.last

    def _write_back(self, i: int) -> Sequence:
        seq = self._members.sequences[i]
        seq.num_computed_tokens = int(self._num_computed[i])
        seq.num_inflight = seq.num_computed_tokens + 1 - seq.num_tokens
        return seq

    def check_integrity(self) -> None:
        for i, seq in enumerate(self._members.sequences):
            if seq.decoding:
                num_inflight = int(self._num_computed[i]) + 1 - seq.num_tokens
                assert num_inflight >= 0, "a decoding sequence has a token that nobody computed"
                assert len(seq.block_table) * self._block_size == self._capacity[i] >= self._num_computed[i]

    def __iter__(self):
        yield from (seq for seq in self._members.sequences if seq.decoding)
        yield from self._joining
