"""What one forward pass is told besides its token ids: an argument of ``forward``, never a global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pyengine.ops import AttentionMetadata


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """One step over T tokens.

    Attributes:
        positions: int32 [T] absolute position of each token in its sequence.
        slot_mapping: int64 [T] KV slot that each token is written to; -1: padding.
        attention: which rows belong to which sequence, where its blocks are; on CUDA planned for ``config.windows[0]``.
        kv_caches: per layer (k_cache, v_cache), each [num_blocks, num_kv_heads, block_size, head_dim].
        output_rows: int32 [N] rows whose hidden states are wanted, or None for all T. Only these rows go through the
            last layer's MLP and the final norm.
        windowed: where ``config.windows`` has several, on CUDA: metadata planned for each of the others.
    """

    positions: torch.Tensor
    slot_mapping: torch.Tensor
    attention: AttentionMetadata
    kv_caches: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    output_rows: torch.Tensor | None = None
    windowed: Mapping[int, AttentionMetadata] = field(default_factory=dict)

    def attention_for(self, window: int) -> AttentionMetadata:
        return self.windowed.get(window, self.attention)
