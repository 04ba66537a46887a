"""Prometheus metrics under the names that vLLM's dashboards use, each with a ``model_name`` label.

What the engine counts arrives as totals in its ``Stats``; they go on across a restart of the engine. What a client
feels (time to first token, between tokens, end to end) is measured here, where the client is. All numbers lie on a
``Board``, so that several API workers count together.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from pyengine.admission import REASON_REQUESTS, REASON_TOKENS
from pyengine.protocol import Stats, TokenDelta
from server.metric_board import Board

TTFT_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
TOKEN_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
REQUEST_BUCKETS_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FINISHED_REASONS = ("stop", "length", "abort", "error")
STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_GAUGES = {
    "vllm:num_requests_running": "sequences in the batch",
    "vllm:num_requests_waiting": "sequences queued",
    "vllm:kv_cache_usage_perc": "share of KV blocks held by live sequences, 0 to 1",
}
_TOTALS = {
    "vllm:num_preemptions": ("num_preemptions", "sequences preempted because KV blocks ran out"),
    "vllm:prompt_tokens": ("num_prompt_tokens", "prompt tokens of admitted sequences"),
    "vllm:prompt_tokens_cached": ("num_cached_tokens", "prompt tokens served by the prefix cache"),
    "vllm:generation_tokens": ("num_generated_tokens", "tokens generated"),
    "vllm:prefix_cache_queries": ("prefix_cache_queries", "tokens looked up in the prefix cache"),
    "vllm:prefix_cache_hits": ("prefix_cache_hits", "tokens found in the prefix cache"),
    "pyengine:blocks_swapped_out": ("num_swapped_out", "KV blocks copied to the host tier"),
    "pyengine:blocks_swapped_in": ("num_swapped_in", "KV blocks copied back from the host tier"),
}

Collected = TypeVar("Collected")


def _token_buckets(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to the context length."""
    buckets = [mantissa * 10**exponent for exponent in range(9) for mantissa in (1, 2, 5)]
    return [bucket for bucket in buckets if bucket <= max(limit, 1)]


class _Engine:
    """The engine's latest Stats, on the board. Only the process that starts the engines updates it."""

    def __init__(self, board: Board, model_name: str):
        self._model_name = model_name
        self._stats = Stats()
        self._base = dict.fromkeys((field for field, _ in _TOTALS.values()), 0)  # of engines that ended
        self._gauges, self._totals = board.cells(len(_GAUGES)), board.cells(len(_TOTALS))

    def update(self, stats: Stats) -> None:
        self._stats = stats
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        for i, value in enumerate((stats.num_running, stats.num_waiting, used)):
            self._gauges.put(i, value)
        for i, (field, _) in enumerate(_TOTALS.values()):
            self._totals.put(i, self._base[field] + getattr(stats, field))

    def ended(self) -> None:
        for name in self._base:
            self._base[name] += getattr(self._stats, name)
        self.update(Stats())

    def collect(self) -> Iterator[Metric]:
        labels = [self._model_name]
        for (name, text), value in zip(_GAUGES.items(), self._gauges.totals(), strict=True):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric(labels, value)
            yield family
        for (name, (_, text)), value in zip(_TOTALS.items(), self._totals.totals(), strict=True):
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric(labels, value)
            yield counter


class _Counter:
    """A counter with one label of known values."""

    def __init__(self, board: Board, name: str, text: str, model_name: str, label: str, values: Sequence[str]):
        self._name, self._text, self._model_name, self._label = name, text, model_name, label
        self._index = {value: i for i, value in enumerate(values)}
        self._cells = board.cells(len(values))

    def inc(self, value: str) -> None:
        self._cells.add(self._index[value], 1)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=["model_name", self._label])
        for value, count in zip(self._index, self._cells.totals(), strict=True):
            family.add_metric([self._model_name, value], count)
        yield family


class _Histogram:
    """A histogram for what is counted with every token: prometheus_client's own takes a lock for each number that it
    changes, and a tenth of the server's time. Like all of this module it belongs to the event loop's thread.
    """

    def __init__(self, board: Board, name: str, text: str, model_name: str, bounds: Sequence[float]):
        self._name, self._text, self._model_name, self._bounds = name, text, model_name, tuple(bounds)
        self._cells = board.cells(len(self._bounds) + 2)  # counts, above all bounds, sum
        self._sum_index = len(self._bounds) + 1

    def observe(self, value: float, count: int = 1) -> None:
        self._cells.add(bisect_left(self._bounds, value), count)
        self._cells.add(self._sum_index, value * count)

    def collect(self) -> Iterator[Metric]:
        *counts, total = self._cells.totals()
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        family.add_metric([self._model_name], list(zip(bounds, accumulate(counts), strict=True)), total)
        yield family


class _Startup:
    """Seconds of the start's phases, which every process knows for itself."""

    def __init__(self, model_name: str):
        self._model_name = model_name
        self.seconds: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        text = "start of the first engine: server (until the engine is started), the engine's phases, ready (all of it)"
        family = GaugeMetricFamily("pyengine:startup_seconds", text, labels=["model_name", "phase"])
        for phase, duration_s in self.seconds.items():
            family.add_metric([self._model_name, phase], duration_s)
        yield family


class Metrics:
    """All metrics of one server. ``max_model_len`` bounds the token histograms."""

    def __init__(self, model_name: str, max_model_len: int, board: Board | None = None):
        board = board or Board()
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, bounds: Sequence[float]) -> _Histogram:
            return self._registered(_Histogram(board, name, text, model_name, bounds))

        def counter(name: str, text: str, label: str, values: Sequence[str]) -> _Counter:
            return self._registered(_Counter(board, name, text, model_name, label, values))

        tokens = _token_buckets(max_model_len)
        self._engine = self._registered(_Engine(board, model_name))
        self._success = counter(
            "vllm:request_success", "requests by how they ended", "finished_reason", FINISHED_REASONS
        )
        self._rejections = counter(
            "vllm:admission_rejections",
            "requests refused because too much was queued",
            "reason",
            (REASON_REQUESTS, REASON_TOKENS),
        )
        self._startup = self._registered(_Startup(model_name))
        self._ttft = histogram("vllm:time_to_first_token_seconds", "arrival to first token", TTFT_BUCKETS_S)
        self._itl = histogram("vllm:inter_token_latency_seconds", "between two tokens of a sequence", TOKEN_BUCKETS_S)
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "arrival to last token", REQUEST_BUCKETS_S)
        self._prompt = histogram("vllm:request_prompt_tokens", "prompt tokens of a request", tokens)
        self._generation = histogram("vllm:request_generation_tokens", "tokens generated for a request", tokens)
        self._step = histogram("vllm:iteration_tokens_total", "tokens computed in a step", STEP_BUCKETS)

    def _registered(self, collector: Collected) -> Collected:
        self.registry.register(collector)
        return collector

    def set_startup(self, seconds: dict[str, float]) -> None:
        self._startup.seconds = dict(seconds)

    def update_engine(self, stats: Stats) -> None:
        self._engine.update(stats)
        for num_tokens in stats.step_tokens:
            self._step.observe(num_tokens)

    def engine_ended(self) -> None:
        self._engine.ended()

    def count_rejection(self, reason: str) -> None:
        self._rejections.inc(reason)

    def track(self, num_prompt_tokens: int) -> RequestMetrics:
        return RequestMetrics(self, num_prompt_tokens)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class RequestMetrics:
    """Clocks of one request. Its sequences share the time to first token; each has its own time between tokens."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int):
        self._metrics = metrics
        self._arrival_s = time.monotonic()
        self._last_s: dict[tuple[str, int], float] = {}
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._done = False

    def observe(self, delta: TokenDelta) -> None:
        now, count = time.monotonic(), len(delta.token_ids)
        if not count:
            return
        key = (delta.request_id, delta.index)
        last = self._last_s.get(key)
        if last is not None:
            self._metrics._itl.observe((now - last) / count, count)
        elif not self._last_s:
            self._metrics._ttft.observe(now - self._arrival_s)
        self._last_s[key] = now
        self._num_tokens += count

    def finish(self, reason: str) -> None:
        """Once per request; later calls are ignored (a stream may end twice: by its last token and by its client)."""
        if self._done:
            return
        self._done = True
        metrics = self._metrics
        metrics._success.inc(reason)
        metrics._e2e.observe(time.monotonic() - self._arrival_s)
        metrics._prompt.observe(self._num_prompt_tokens)
        metrics._generation.observe(self._num_tokens)
