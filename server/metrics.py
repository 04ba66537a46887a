"""Prometheus metrics under the names that vLLM's dashboards use, each with a ``model_name`` label.

What the engine counts arrives as totals in its ``Stats``; they go on across a restart of the engine. What a client
feels (time to first token, between tokens, end to end) is measured here, where the client is.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from pyengine.admission import REASON_REQUESTS, REASON_TOKENS
from pyengine.protocol import Stats, TokenDelta

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
STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOTALS = {
    "vllm:num_preemptions": ("num_preemptions", "sequences preempted because KV blocks ran out"),
    "vllm:prompt_tokens": ("num_prompt_tokens", "prompt tokens of admitted sequences"),
    "vllm:prompt_tokens_cached": ("num_cached_tokens", "prompt tokens served by the prefix cache"),
    "vllm:generation_tokens": ("num_generated_tokens", "tokens generated"),
    "vllm:prefix_cache_queries": ("prefix_cache_queries", "tokens looked up in the prefix cache"),
    "vllm:prefix_cache_hits": ("prefix_cache_hits", "tokens found in the prefix cache"),
}


def _token_buckets(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to the context length."""
    buckets = [mantissa * 10**exponent for exponent in range(9) for mantissa in (1, 2, 5)]
    return [bucket for bucket in buckets if bucket <= max(limit, 1)]


disable_created_metrics()  # a gauge beside each counter that no dashboard reads


class _EngineCollector:
    """Turns the engine's latest Stats into metrics whenever somebody scrapes."""

    def __init__(self, model_name: str):
        self._model_name = model_name
        self._stats = Stats()
        self._base: dict[str, int] = dict.fromkeys((field for field, _ in _TOTALS.values()), 0)  # of engines that ended

    def update(self, stats: Stats) -> None:
        self._stats = stats

    def engine_ended(self) -> None:
        for name in self._base:
            self._base[name] += getattr(self._stats, name)
        self._stats = Stats()

    def collect(self) -> Iterator[Metric]:
        stats, labels = self._stats, [self._model_name]
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges = {
            "vllm:num_requests_running": ("sequences in the batch", stats.num_running),
            "vllm:num_requests_waiting": ("sequences queued", stats.num_waiting),
            "vllm:kv_cache_usage_perc": ("share of KV blocks held by live sequences, 0 to 1", used),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric(labels, value)
            yield family
        for name, (field, text) in _TOTALS.items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric(labels, self._base[field] + getattr(stats, field))
            yield counter


class _Histogram:
    """A histogram for what is counted with every token: prometheus_client's own takes a lock for each number that it
    changes, and a tenth of the server's time. Like all of this module it belongs to the event loop's thread.
    """

    def __init__(self, name: str, text: str, labels: dict[str, str], bounds: Sequence[float]):
        self._name, self._text, self._labels, self._bounds = name, text, labels, tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)  # the last one: above all bounds
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


class Metrics:
    """All metrics of one server. ``max_model_len`` bounds the token histograms."""

    def __init__(self, model_name: str, max_model_len: int):
        self.registry = CollectorRegistry()
        self._engine = _EngineCollector(model_name)
        self.registry.register(self._engine)
        self._labels = {"model_name": model_name}
        tokens = _token_buckets(max_model_len)
        self._success = Counter(
            "vllm:request_success",
            "requests by how they ended",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._rejections = Counter(
            "vllm:admission_rejections",
            "requests refused because too much was queued",
            ["model_name", "reason"],
            registry=self.registry,
        )
        for reason in (REASON_REQUESTS, REASON_TOKENS):
            self._rejections.labels(**self._labels, reason=reason)  # a counter that is there before it counts
        self._startup = Gauge(
            "pyengine:startup_seconds",
            "start of the first engine: server (until the engine is started), the engine's phases, ready (all of it)",
            ["model_name", "phase"],
            registry=self.registry,
        )
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "arrival to first token", TTFT_BUCKETS_S)
        self._itl = self._histogram(
            "vllm:inter_token_latency_seconds", "between two tokens of a sequence", TOKEN_BUCKETS_S
        )
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "arrival to last token", REQUEST_BUCKETS_S)
        self._prompt = self._histogram("vllm:request_prompt_tokens", "prompt tokens of a request", tokens)
        self._generation = self._histogram("vllm:request_generation_tokens", "tokens generated for a request", tokens)
        self._step = self._histogram("vllm:iteration_tokens_total", "tokens computed in a step", STEP_BUCKETS)

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> _Histogram:
        histogram = _Histogram(name, text, self._labels, bounds)
        self.registry.register(histogram)
        return histogram

    def set_startup(self, seconds: dict[str, float]) -> None:
        for phase, duration_s in seconds.items():
            self._startup.labels(**self._labels, phase=phase).set(duration_s)

    def update_engine(self, stats: Stats) -> None:
        self._engine.update(stats)
        for num_tokens in stats.step_tokens:
            self._step.observe(num_tokens)

    def engine_ended(self) -> None:
        self._engine.engine_ended()

    def count_rejection(self, reason: str) -> None:
        self._rejections.labels(**self._labels, reason=reason).inc()

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
        metrics._success.labels(**metrics._labels, finished_reason=reason).inc()
        metrics._e2e.observe(time.monotonic() - self._arrival_s)
        metrics._prompt.observe(self._num_prompt_tokens)
        metrics._generation.observe(self._num_tokens)
