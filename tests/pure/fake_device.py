"""A device made of dictionaries: it obeys StepInputs literally and checks that every token sees exactly its own past.

Each KV slot holds the (position, token) written into it. Before a sequence "attends", the slots that its block table
names must hold its whole prefix; a stale block, a missed copy or a wrong table entry fails at once. The sampled token
is a hash of the prefix, so that equal prefixes give equal tokens, as a batch-invariant engine does.
"""

from __future__ import annotations

import zlib

import numpy as np

from pyengine.protocol import TokenLogprob
from pyengine.sched.step import PoolRead, ScoreRead, StepInput, StepOutput


class FakeDevice:
    def __init__(self, block_size: int, vocab_size: int = 50):
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}
        self.host_slots: dict[tuple[int, int], tuple[int, int]] = {}
        self.tables: dict[tuple[int, int], int] = {}
        self.last_tokens: dict[int, int] = {}
        self.sums: dict[int, list[int]] = {}
        self.nan_prefixes: set[tuple[int, ...]] = set()

    def execute(self, step: StepInput) -> StepOutput:
        entries = [(row, index) for row, index, _ in step.block_entries.tolist()]
        assert len(entries) == len(set(entries)), "two writes to one table entry in one step"
        for row, index, block in step.block_entries.tolist():
            self.tables[row, index] = block
        self._swap(step.swaps_out.tolist(), self.slots, self.host_slots)
        self._swap(step.swaps_in.tolist(), self.host_slots, self.slots)
        self._copy(step.copies.tolist())
        self._write(step)
        tokens = [self._attend(step, i) for i in range(len(step.rows)) if step.samples[i]]
        for row, token in zip(step.rows[step.samples].tolist(), tokens, strict=True):
            self.last_tokens[row] = token
        scores = tuple(self._score(step, read) for read in step.reads.scores)
        vectors = [self._pool(step, read) for read in step.reads.pools]
        ended = [vector for vector in vectors if vector is not None]
        pooled = np.asarray(ended, np.float32) if step.reads.pools else None
        return StepOutput(step.step_id, np.asarray(tokens, dtype=np.int32), prompt_scores=scores, pooled=pooled)

    def _swap(self, pairs: list[list[int]], source: dict, target: dict) -> None:
        """In any order: the copies of one direction are independent. Only whole blocks are worth one."""
        destinations = [dst for _, dst in pairs]
        assert len(destinations) == len(set(destinations)), "two copies into one block"
        for src, dst in reversed(pairs):
            for offset in range(self.block_size):
                target[dst, offset] = source[src, offset]

    def _copy(self, copies: list[list[int]]) -> None:
        sources, destinations = {src for src, _ in copies}, [dst for _, dst in copies]
        assert not sources & set(destinations) and len(destinations) == len(set(destinations))
        for src, dst in copies:
            for offset in range(self.block_size):
                self.slots.pop((dst, offset), None)
                if (src, offset) in self.slots:
                    self.slots[dst, offset] = self.slots[src, offset]

    def _write(self, step: StepInput) -> None:
        written = set()
        for i, row in enumerate(step.rows.tolist()):
            start, count, offset = (
                int(step.num_computed_tokens[i]),
                int(step.num_new_tokens[i]),
                int(step.prompt_offsets[i]),
            )
            ids = [self.last_tokens[row]] if offset < 0 else step.prompt_ids[offset : offset + count].tolist()
            assert len(ids) == count
            for position, token in enumerate(ids, start):
                slot = (self.tables[row, position // self.block_size], position % self.block_size)
                assert slot not in written, "two sequences write one slot in one step"
                written.add(slot)
                self.slots[slot] = (position, token)

    def _attend(self, step: StepInput, i: int) -> int:
        return self.sample(self._prefix(step, i, int(step.num_computed_tokens[i] + step.num_new_tokens[i])))

    def _score(self, step: StepInput, read: ScoreRead) -> list[TokenLogprob]:
        start, num_new = int(step.num_computed_tokens[read.batch_row]), int(step.num_new_tokens[read.batch_row])
        assert 0 <= read.first and read.first + len(read.target_ids) <= num_new, "a token outside the chunk is read"
        return [
            self.score(self._prefix(step, read.batch_row, start + index + 1), target)
            for index, target in enumerate(read.target_ids, read.first)
        ]

    def score(self, prefix: tuple[int, ...], target: int) -> TokenLogprob:
        if prefix in self.nan_prefixes:
            return TokenLogprob(float("nan"), 0, [], [])
        return TokenLogprob(-(zlib.crc32(repr((prefix, target)).encode()) % 1000) / 10, target, [], [])

    def _pool(self, step: StepInput, read: PoolRead) -> list[float] | None:
        start, num_new = int(step.num_computed_tokens[read.batch_row]), int(step.num_new_tokens[read.batch_row])
        assert step.rows[read.batch_row] == read.row and read.first + read.num_tokens <= num_new
        if read.begins:
            self.sums[read.row] = []
        first = start + read.first
        for length in range(first + 1, first + read.num_tokens + 1):
            self.sums[read.row].append(self.state(self._prefix(step, read.batch_row, length)))
        return self.mean(self.sums.pop(read.row), read.divisor) if read.divisor else None

    def state(self, prefix: tuple[int, ...]) -> float:
        return float("nan") if prefix in self.nan_prefixes else zlib.crc32(repr(prefix).encode()) % 1000

    def mean(self, states: list[float], divisor: int) -> list[float]:
        return [sum(states) / divisor, len(states)]

    def _prefix(self, step: StepInput, i: int, length: int) -> tuple[int, ...]:
        row = int(step.rows[i])
        prefix = []
        for position in range(length):
            stored, token = self.slots[self.tables[row, position // self.block_size], position % self.block_size]
            assert stored == position, f"row {row} reads position {stored} at {position}"
            prefix.append(token)
        return tuple(prefix)

    def sample(self, prefix: tuple[int, ...]) -> int:
        if prefix in self.nan_prefixes:
            return -1
        return zlib.crc32(repr(prefix).encode()) % self.vocab_size

    def continuation(self, prompt: list[int], max_tokens: int, stop: frozenset[int] = frozenset()) -> list[int]:
        """What a sequence must produce when it is alone in the world."""
        tokens = list(prompt)
        while len(tokens) - len(prompt) < max_tokens:
            tokens.append(self.sample(tuple(tokens)))
            if tokens[-1] in stop:
                break
        return tokens[len(prompt) :]
