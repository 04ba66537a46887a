"""Rotary position embeddings as tables: one row of cosines and sines per absolute position.

Every variant in use only changes the frequencies, and at most scales the table, so the op that rotates knows none of
them: default (RoFormer, arXiv 2104.09864), linear (position interpolation, arXiv 2306.15595), llama3 (Llama 3.1), yarn
(arXiv 2309.00071), and factors (one divisor per frequency, as GGUF files carry them). Variants whose frequencies depend
on the length of the running sequence (dynamic, longrope) would change keys that are already cached and are refused
where configurations are read. numpy only, so that configurations can be read without torch.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

KINDS = ("default", "linear", "llama3", "yarn", "factors")
_TABLE_ROWS = 4096  # positions that a thread computes at a time: float64 scratch of 2 MiB per 64 frequencies
_TABLE_THREADS = 8  # 131,072 positions take one thread 0.35 s of the start


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """The rotary embedding of one model, all defaults resolved. Lengths in tokens.

    Attributes:
        rotary_dim: leading elements of each head that rotate; even.
        theta: base wavelength.
        kind: one of KINDS; the remaining fields are read by the kinds they are named after.
        attention_factor: yarn; cosines and sines are multiplied by it.
        freq_factors: factors; rotary_dim / 2 divisors.
    """

    rotary_dim: int
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    freq_factors: tuple[float, ...] = ()


def inverse_frequencies(rope: RopeParameters) -> np.ndarray:
    """float32 [rotary_dim / 2]: radians per position. float32, because checkpoints were trained with it."""
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim
    plain = rope.theta**-exponents
    return {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "factors": _factors}[rope.kind](
        plain, rope
    ).astype(np.float32)


def cos_sin_table(rope: RopeParameters, max_position: int) -> np.ndarray:
    """float32 [max_position, rotary_dim]: cosines in the first half of a row, sines in the second.

    Angles are formed in float64: at position 100,000 a float32 product is already off by 0.004 radians.
    """
    frequencies = inverse_frequencies(rope).astype(np.float64)
    half = rope.rotary_dim // 2
    table = np.empty((max_position, rope.rotary_dim), dtype=np.float32)

    def fill(begin: int) -> None:
        rows = table[begin : begin + _TABLE_ROWS]
        angles = np.arange(begin, begin + len(rows), dtype=np.float64)[:, None] * frequencies
        rows[:, :half] = np.cos(angles) * rope.attention_factor
        rows[:, half:] = np.sin(angles) * rope.attention_factor

    with ThreadPoolExecutor(min(_TABLE_THREADS, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(fill, range(0, max_position, _TABLE_ROWS)))
    return table


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """The temperature of YaRN (arXiv 2309.00071, equation 22), in the two forms that checkpoints use."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def _default(plain: np.ndarray, rope: RopeParameters) -> np.ndarray:
    return plain


def _linear(plain: np.ndarray, rope: RopeParameters) -> np.ndarray:
    return plain / rope.factor


def _factors(plain: np.ndarray, rope: RopeParameters) -> np.ndarray:
    return plain / np.asarray(rope.freq_factors, dtype=np.float64)


def _llama3(plain: np.ndarray, rope: RopeParameters) -> np.ndarray:
    """Short wavelengths stay, long ones are stretched by ``factor``, those between are blended."""
    rotations = rope.original_max_position * plain / (2 * math.pi)
    blend = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return plain * _mix(1 / rope.factor, 1.0, np.clip(blend, 0, 1))


def _yarn(plain: np.ndarray, rope: RopeParameters) -> np.ndarray:
    """Dimensions that turn over beta_fast times in the original context stay, those below beta_slow are stretched."""

    def dimension(rotations: float) -> float:
        wavelength = rope.original_max_position / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    ramp = (np.arange(len(plain)) - low) / (high - low if high != low else 0.001)
    return plain * _mix(1.0, 1 / rope.factor, np.clip(ramp, 0, 1))


def _mix(first: float, second: float, weight: np.ndarray) -> np.ndarray:
    return first * (1 - weight) + second * weight
