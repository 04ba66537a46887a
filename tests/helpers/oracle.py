"""How a result is judged against the specification, and tensors that betray a kernel that reads or writes astray.

The tolerance is no hand-tuned constant: an op may err from the float64 truth at most twice as far as a plain
low-precision torch version does, plus a few units in the last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

ULPS = 4


def assert_accurate(actual: Tensor, truth: Tensor, plain: Tensor, summed: Tensor | None = None) -> None:
    """``actual`` errs from ``truth`` (float64) at most twice as far as ``plain`` (the same by ordinary torch), plus
    ULPS.

    Args:
        summed: for long sums, the sum of the terms' magnitudes; its fp32 ulps join the floor, since an order of
            summation
            that is fixed for the sake of batch invariance rounds otherwise than a library's.
    """
    assert actual.shape == truth.shape
    assert not actual.isnan().any(), "NaN in the result"
    if actual.numel() == 0:
        return
    truth = truth.double()
    error, plain_error = (actual.double() - truth).abs(), (plain.double() - truth).abs().max()
    floor = torch.finfo(actual.dtype).eps * truth.abs().clamp(min=float(truth.abs().mean()))
    if summed is not None:
        floor = floor + torch.finfo(torch.float32).eps * summed
    excess = (error - 2 * plain_error - ULPS * floor).max()
    assert excess <= 0, f"excess {excess:.3g}; largest error {error.max():.3g}, plain torch's {plain_error:.3g}"


class Poisoned:
    """A row tensor [rows, cols] inside a larger buffer of NaN: strided, with guards round its rows."""

    GUARD = 32  # elements; keeps rows 16-byte aligned in every dtype

    def __init__(self, content: Tensor):
        rows, cols = content.shape
        self._buffer = torch.full(
            (rows + 2, cols + 2 * self.GUARD), float("nan"), dtype=content.dtype, device=content.device
        )
        self.view = self._buffer[1 : rows + 1, self.GUARD : self.GUARD + cols]
        self.view.copy_(content)

    def assert_guards_intact(self) -> None:
        guards = self._buffer.clone()
        guards[1:-1, self.GUARD : -self.GUARD] = float("nan")
        assert guards.isnan().all(), "the op wrote outside its rows"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of representation: tells 0.0 from -0.0 and lets NaN equal itself."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(width), b.contiguous().view(width))
