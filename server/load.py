"""Refusing early: what the engine's queue holds, as far as this server can know between two of the engine's reports.

The engine alone decides, but it reads its messages between steps, and a step may be long. When its own latest figures
leave no doubt that a request would be refused, the server says so at once. Everything doubtful goes to the engine.
"""

from __future__ import annotations

from collections import deque

from pyengine.admission import QueueLimits, QueueLoad
from pyengine.protocol import Ready, Request, Stats


def load_of(requests: list[Request]) -> QueueLoad:
    """What the prompts of one client's request put into the queue."""
    num_tokens = sum(request.params.n * len(request.prompt_token_ids) for request in requests)
    return QueueLoad(sum(request.params.n for request in requests), num_tokens)


class Backlog:
    """A lower bound of the engine's queue: its last report, and what was sent since that it cannot have started."""

    def __init__(self, ready: Ready):
        self._limits = QueueLimits(ready.max_queued_requests, ready.max_queued_tokens)
        self._max_num_seqs = ready.max_num_seqs
        self._stats = Stats()
        self._under_way: deque[tuple[int, QueueLoad]] = deque()  # (num_sent, load) that the engine has not decided on
        self._load_under_way = QueueLoad()
        self._num_sent = 0

    def check(self, new: QueueLoad) -> None:
        """Raises QueueFull when the engine would."""
        drained_per_s = QueueLoad(self._stats.drained_seqs_per_s, self._stats.drained_tokens_per_s)
        self._limits.check(self._queued(), new, drained_per_s)

    def sent(self, num_requests: int, load: QueueLoad) -> int:
        """Note what goes to the engine; returns the number of requests sent so far."""
        self._num_sent += num_requests
        self._under_way.append((self._num_sent, load))
        self._load_under_way += load
        return self._num_sent

    def reported(self, stats: Stats | None, num_received: int) -> None:
        """The engine has decided on ``num_received`` requests of this server."""
        if stats is not None:
            self._stats = stats
        while self._under_way and self._under_way[0][0] <= num_received:
            self._load_under_way -= self._under_way.popleft()[1]

    def _queued(self) -> QueueLoad:
        known = QueueLoad(self._stats.num_queued, self._stats.num_queued_tokens)
        if known.num_seqs or self._stats.num_running >= self._max_num_seqs:  # nobody overtakes: it queues behind
            return known + self._load_under_way
        num_free = self._max_num_seqs - self._stats.num_running
        return QueueLoad(max(0, self._load_under_way.num_seqs - num_free), 0)
