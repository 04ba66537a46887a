"""Random weights for measuring speed and testing plumbing: only config.json is needed.

Each tensor is drawn from a generator of its own (seed and name), so that a tensor does not depend on which others are
loaded, or in which order. Matrices have variance 1 / columns, norms are 1, so that activations keep their scale through
the layers and logits have
a standard deviation of about 2: neither flat nor saturated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch

_LOGIT_SCALE = 2.0  # of the tensors that make logits


class DummySource:
    """A WeightSource that invents what it is asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self.shapes = shapes
        self._seed = seed

    def where(self, name: str) -> str:
        return "dummy weights"

    def num_bytes(self, name: str) -> int:
        return 2 * math.prod(self.shapes[name])

    def file_bytes(self, name: str) -> None:
        """In no file."""

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        shape = self.shapes[name]
        out = torch.empty(shape, dtype=dtype, device=device)
        if name.endswith("norm.weight"):
            return out.fill_(1)
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
        scale = _LOGIT_SCALE if name.startswith(("lm_head", "model.embed")) else 1.0
        bound = scale * math.sqrt(3 / shape[-1])  # a uniform variate has variance bound^2 / 3
        return out.uniform_(-bound, bound, generator=generator)
