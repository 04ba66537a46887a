"""What the loader asks of a place that holds weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from pyengine.models.weights.upload import FileBytes


class WeightSource(Protocol):
    """Tensors by Hugging Face name. Everything about them is known, and checked, before the first one is read.

    Attributes:
        shapes: shape of every tensor.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def where(self, name: str) -> str:
        """The file that holds tensor ``name``, for messages."""

    def num_bytes(self, name: str) -> int:
        """Bytes that are read for it."""

    def file_bytes(self, name: str) -> FileBytes | None:
        """Where its elements lie in a file as they are, to be read without ``load``; None: they have to be made. Raises
        ModelError for a type of element that is not supported.
        """

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The tensor in that type on that device. Called from several threads at once. Raises ModelError."""
