"""The workloads: how many requests, how long their prompts and answers, when they arrive. Seeded, lengths in tokens.

Prompts are random token ids and every request runs to its ``max_tokens``: lengths decide the time, contents do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LENGTHS_SEED = 20_260_101  # lengths are part of the workload: the same in every run


@dataclass(frozen=True)
class Item:
    """One request: its prompt, the tokens to generate, and when it arrives (seconds after the start)."""

    prompt_token_ids: list[int]
    max_tokens: int
    arrival_s: float = 0.0


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


def _ids(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    return rng.integers(0, vocab_size, size=int(count)).tolist()
