"""Weights from a GGUF file, dequantised while they are read.

The ``gguf`` library turns quantised blocks into float32 with numpy, 16 rows at a time; handing it rows of many blocks
instead of the tensor's own narrow ones makes that twice as fast, because its Python loop runs less often. llama.cpp
stores Llama's q and k with the two halves of each head interleaved (for its own rotation); the rows are put back into
the order that checkpoints, and our rope op, use.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch

from pyengine.errors import ModelError
from pyengine.models.config import ModelConfig
from pyengine.models.registry import find_architecture
from pyengine.text.gguf_metadata import GGUFTensor, open_gguf

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NOT_WEIGHTS = ("rope_freqs.weight",)  # read with the configuration
_MAX_ROW_BLOCKS = 512  # with the library's 16 rows at a time: 1 MiB of float32 per step at 32 elements a block


class GgufSource:
    """A WeightSource over one .gguf file."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self._path = path
        self._heads: dict[str, int] = {}
        file = open_gguf(path)
        self._tensors = {_hf_name(t.name, path): t for t in file.tensors if t.name not in _NOT_WEIGHTS}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        if find_architecture((config.architecture,), config.source).gguf_permuted_qk:
            self._heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def where(self, name: str) -> str:
        return str(self._path)

    def num_bytes(self, name: str) -> int:
        return self._tensors[name].num_bytes

    def file_bytes(self, name: str) -> None:
        """Quantised, or in another order."""

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        tensor = self._tensors[name]
        try:
            values = _dequantize(tensor)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self._path}: tensor {tensor.name} of type {tensor.tensor_type.name} cannot be read: {error}"
            ) from None
        values = values.to(dtype)
        num_heads = self._heads.get(name.split(".")[-2])
        return (unpermute(values, num_heads) if num_heads else values).to(device)


def _hf_name(name: str, path: Path) -> str:
    layer = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{int(layer[1])}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES and kind == "weight":
        return f"{_NAMES[stem]}.{kind}"
    raise ModelError(f"{path}: tensor {name[:80]} is not known")


def _dequantize(tensor: GGUFTensor) -> torch.Tensor:
    """In a floating type that holds the values exactly."""
    kind, data = tensor.tensor_type, tensor.data
    if kind.name in ("F32", "F16", "F64"):
        return torch.from_numpy(data.copy())
    if kind.name == "BF16":
        return torch.from_numpy(data.copy()).view(torch.bfloat16)
    if data.dtype != np.uint8:
        raise ValueError("integers are not weights")
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    blocks_per_row = max(count for count in range(1, _MAX_ROW_BLOCKS + 1) if len(blocks) % count == 0)
    rows = blocks.reshape(len(blocks) // blocks_per_row, -1)
    return torch.from_numpy(gguf.quants.dequantize(rows, kind)).view(tensor.shape)


def unpermute(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of a head's rows, (0, half, 1, half + 1, ...), for [num_heads * head_dim, ...]."""
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])  # [num_heads, half, 2, ...]
    return pairs.transpose(1, 2).reshape(values.shape)
