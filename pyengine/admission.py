"""Who may join the engine's queue: a bound in sequences and in tokens, and how long until there is room again.

The engine decides, once, however many servers send to it. A server that knows the engine's own figures (``Stats``)
uses the same rule to refuse at once what the engine would refuse at the end of its step. Whatever is within the limits
of one request is always taken when nothing is queued, however small the queue is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyengine.errors import RequestError

MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0
AVERAGED_S = 10.0  # over how long the drain rate is measured
REASON_REQUESTS = "max_num_queued_reqs"  # the labels of vllm:admission_rejections
REASON_TOKENS = "max_num_queued_tokens"


class QueueFull(RequestError):
    """Too much is queued; come back in ``retry_after_s`` seconds. ``code`` is the bound that was reached."""

    def __init__(self, message: str, code: str, retry_after_s: float):
        super().__init__(message, status=429, code=code)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """Sequences and their prompt tokens: of a queue, of a request, or per second."""

    num_seqs: float = 0
    num_tokens: float = 0

    def __add__(self, other: QueueLoad) -> QueueLoad:
        return QueueLoad(self.num_seqs + other.num_seqs, self.num_tokens + other.num_tokens)

    def __sub__(self, other: QueueLoad) -> QueueLoad:
        return QueueLoad(self.num_seqs - other.num_seqs, self.num_tokens - other.num_tokens)

    def __mul__(self, factor: float) -> QueueLoad:
        return QueueLoad(self.num_seqs * factor, self.num_tokens * factor)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what has not been started yet."""

    max_seqs: int
    max_tokens: int

    def check(self, queued: QueueLoad, new: QueueLoad, drained_per_s: QueueLoad) -> None:
        """Raises QueueFull when ``new`` does not fit behind ``queued``; never when nothing is queued."""
        if not queued.num_seqs:
            return
        after = queued + new
        if after.num_seqs > self.max_seqs:
            code, text = REASON_REQUESTS, f"{queued.num_seqs:.0f} sequences (--max-queued-requests {self.max_seqs})"
        elif after.num_tokens > self.max_tokens:
            code, text = REASON_TOKENS, f"{queued.num_tokens:.0f} tokens (--max-queued-tokens {self.max_tokens})"
        else:
            return
        excess = QueueLoad(  # a request larger than the whole queue waits until the queue is empty
            min(after.num_seqs - self.max_seqs, queued.num_seqs),
            min(after.num_tokens - self.max_tokens, queued.num_tokens),
        )
        wait_s = _seconds_until_room(excess, drained_per_s)
        raise QueueFull(f"the server is busy: {text} are queued; try again in {wait_s:.0f} s", code, wait_s)


def _seconds_until_room(excess: QueueLoad, drained_per_s: QueueLoad) -> float:
    waits = [MIN_RETRY_S]
    if excess.num_seqs > 0 and drained_per_s.num_seqs:
        waits.append(excess.num_seqs / drained_per_s.num_seqs)
    if excess.num_tokens > 0 and drained_per_s.num_tokens:
        waits.append(excess.num_tokens / drained_per_s.num_tokens)
    return float(math.ceil(min(max(waits), MAX_RETRY_S)))


class DrainRate:
    """What leaves the queue per second, measured while something waits in it and forgotten over ``AVERAGED_S``."""

    def __init__(self) -> None:
        self._left = QueueLoad()
        self._elapsed_s = 0.0
        self._last_s: float | None = None  # None: nothing was queued when last looked at
        self._last_total = QueueLoad()

    def observe(self, now_s: float, total_left: QueueLoad, queued: bool) -> None:
        """``total_left``: all that has ever left the queue. Called once per step."""
        if self._last_s is not None:
            step_s = now_s - self._last_s
            keep = math.exp(-step_s / AVERAGED_S)
            self._elapsed_s = self._elapsed_s * keep + step_s
            self._left = self._left * keep + (total_left - self._last_total)
        self._last_s = now_s if queued else None
        self._last_total = total_left

    @property
    def per_s(self) -> QueueLoad:
        """Zero before anything was measured. While nothing has left yet, as if one sequence were about to."""
        if not self._elapsed_s:
            return QueueLoad()
        return QueueLoad(max(self._left.num_seqs, 1) / self._elapsed_s, max(self._left.num_tokens, 1) / self._elapsed_s)
