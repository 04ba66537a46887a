"""The workloads: how many requests, how long their prompts and answers, when they arrive. Seeded, lengths in tokens.

Prompts are random token ids and every request runs to its ``max_tokens``: lengths decide the time, contents do not.
Those with parameters (``rate:25:600``, ``burst:512``, ``spike``) need a clock of arrivals, so they run over HTTP only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LENGTHS_SEED = 20_260_101  # lengths are part of the workload: the same in every run


@dataclass(frozen=True)
class Item:
    """One request: its prompt, the tokens to generate, and when it arrives (seconds after the start).

    ``chained``: it arrives when the chained request before it has ended, but not before ``arrival_s``.
    """

    prompt_token_ids: list[int]
    max_tokens: int
    arrival_s: float = 0.0
    chained: bool = False


def _fixed(count: int, prompt: int, output: int) -> Callable[[np.random.Generator, int], list[Item]]:
    def make(rng: np.random.Generator, vocab_size: int) -> list[Item]:
        return [Item(_ids(rng, prompt, vocab_size), output) for _ in range(count)]

    return make


def _nano(rng: np.random.Generator, vocab_size: int) -> list[Item]:
    lengths = np.random.default_rng(LENGTHS_SEED).integers(100, 1025, size=(256, 2))
    return [Item(_ids(rng, prompt, vocab_size), int(output)) for prompt, output in lengths]


def _prefix(rng: np.random.Generator, vocab_size: int) -> list[Item]:
    shared = _ids(rng, 2048, vocab_size)
    return [Item(shared + _ids(rng, 128, vocab_size), 64) for _ in range(512)]


_WORKLOADS: dict[str, Callable[[np.random.Generator, int], list[Item]]] = {
    "nano": _nano,
    "mix1024-256": _fixed(512, 1024, 256),
    "latency1": _fixed(1, 1024, 256),
    "latency32": _fixed(32, 1024, 256),
    "prefill": _fixed(256, 2048, 1),
    "long16k": _fixed(16, 16_000, 128),
    "prefix": _prefix,
    "chat1": _fixed(1, 128, 128),
    "chat16": _fixed(16, 128, 128),
    "prefill512": _fixed(1, 512, 1),
}
NAMES = tuple(_WORKLOADS)


def make_workload(name: str, vocab_size: int, seed: int = 0) -> list[Item]:
    """The requests of a workload. Another ``seed`` gives other prompts of the same lengths, so that no run finds
    another's prefixes.

    Raises KeyError for an unknown name.
    """
    return _WORKLOADS[name](np.random.default_rng([seed, *name.encode()]), vocab_size)


def make_online_workload(spec: str, vocab_size: int, seed: int = 0) -> list[Item]:
    """As ``make_workload``, also for those with parameters: ``rate:R:N`` (N requests, Poisson at R a second),
    ``burst:N`` (at once) and ``spike[:STREAMS:IN:OUT:LONGS:LONG]``.

    Raises ValueError for anything else.
    """
    rng = np.random.default_rng([seed, *spec.encode()])
    try:
        match spec.split(":"):
            case ["rate", rate, count]:
                return _conversations(rng, vocab_size, int(count), float(rate))
            case ["burst", count]:
                return _conversations(rng, vocab_size, int(count), None)
            case ["spike", *numbers] if len(numbers) in (0, 5):
                return _spike(rng, vocab_size, *map(int, numbers))
            case _:
                return make_workload(spec, vocab_size, seed)
    except (KeyError, ValueError):
        known = ", ".join(NAMES)
        raise ValueError(f"workload {spec!r} unknown: expected rate:R:N, burst:N, spike, or one of {known}") from None


def _conversations(rng: np.random.Generator, vocab_size: int, count: int, rate: float | None) -> list[Item]:
    """Lengths as of conversations: many short, few long. Arrivals, like lengths, are the same in every run."""
    fixed = np.random.default_rng(LENGTHS_SEED)
    prompts = np.clip(fixed.lognormal(5.8, 0.9, count), 16, 4000).astype(int)
    outputs = np.clip(fixed.lognormal(5.0, 0.7, count), 16, 1000).astype(int)
    arrivals = np.zeros(count) if rate is None else np.cumsum(fixed.exponential(1 / rate, count))
    return [
        Item(_ids(rng, prompt, vocab_size), int(output), float(arrival))
        for prompt, output, arrival in zip(prompts, outputs, arrivals, strict=True)
    ]


SPIKE_BEGIN_S = 1.5  # the streams' own prompts are through by then, and the long ones meet decoding alone


def _spike(
    rng: np.random.Generator,
    vocab_size: int,
    streams: int = 32,
    prompt: int = 512,
    output: int = 700,
    longs: int = 6,
    long_prompt: int = 16_000,
) -> list[Item]:
    """Streams that decode, and long prompts one after another into them."""
    items = [Item(_ids(rng, prompt, vocab_size), output) for _ in range(streams)]
    return items + [Item(_ids(rng, long_prompt, vocab_size), 1, SPIKE_BEGIN_S, chained=True) for _ in range(longs)]


def _ids(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    return rng.integers(0, vocab_size, size=int(count)).tolist()
