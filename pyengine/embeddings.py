"""From a pooled hidden state, as the engine sends it, to an embedding: cut to its first dimensions, of length one."""

from __future__ import annotations

import base64

import numpy as np


def finish(pooled: bytes, dimensions: int | None = None) -> np.ndarray:
    """float32 [dimensions] of Euclidean length 1 (zeros stay zeros).

    Args:
        pooled: float32, little-endian.
        dimensions: how many to keep (Matryoshka representations, arXiv 2205.13147); None keeps all.
    """
    vector = np.frombuffer(pooled, "<f4")[:dimensions].astype(np.float64)
    length = np.sqrt(np.sum(vector * vector))
    return (vector / length if length else vector).astype(np.float32)


def to_base64(vector: np.ndarray) -> str:
    """OpenAI's ``encoding_format: base64``: the little-endian float32 values."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
