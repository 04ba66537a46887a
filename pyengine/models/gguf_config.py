"""ModelConfig from the metadata of a GGUF file (architectures llama, qwen2, qwen3).

GGUF says a few things by tensors instead of keys: the vocabulary is the embedding's rows, a missing ``output.weight``
means tied embeddings, and ``rope_freqs.weight`` holds the frequency divisors of Llama 3.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyengine.errors import ModelError
from pyengine.layers.rotary import RopeParameters, yarn_attention_factor
from pyengine.models import config as limits
from pyengine.models.config import ModelConfig
from pyengine.models.fields import Fields
from pyengine.models.registry import find_gguf_architecture

if TYPE_CHECKING:
    from pyengine.text.gguf_metadata import GGUFFile

_REFUSED = (
    "expert_count",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "attention.clamp_kqv",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_CHECKPOINT_DTYPES = {"F16": "float16", "F32": "float32"}  # quantised kinds are dequantised to bfloat16


def read_file(path: Path) -> ModelConfig:
    """From a .gguf file. Raises ModelError naming the file and the key or tensor."""
    from pyengine.text.gguf_metadata import open_gguf

    return parse(open_gguf(path))


def parse(file: GGUFFile) -> ModelConfig:
    """From an opened file."""
    where = str(file.path)
    general = Fields(file.metadata, where)
    architecture = find_gguf_architecture(general.string("general.architecture"), where)
    keys = Fields(file.metadata, where, prefix=f"{architecture.gguf_name}.")
    for key in _REFUSED:
        keys.refuse(key, (None, 0, 0.0))
    hidden_size = keys.integer("embedding_length", 1, limits.MAX_HIDDEN)
    num_heads = keys.integer("attention.head_count", 1, limits.MAX_HEADS)
    num_layers = keys.integer("block_count", 1, limits.MAX_LAYERS)
    head_dim = keys.integer("attention.key_length", 8, limits.MAX_HEAD_DIM, None) or _divide(
        keys, hidden_size, num_heads
    )
    keys.integer("attention.value_length", head_dim, head_dim, None)
    rope, max_position = _rope(file, keys, head_dim)
    vocab_size = _vocab_size(file)
    window = keys.integer("attention.sliding_window", 1, 2**31 - 1, 0)
    return ModelConfig(
        architecture=architecture.name,
        source=where,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        intermediate_size=keys.integer("feed_forward_length", 1, limits.MAX_INTERMEDIATE),
        num_heads=num_heads,
        head_dim=head_dim,
        num_kv_heads=keys.integer("attention.head_count_kv", 1, limits.MAX_HEADS, default=num_heads),
        max_position=max_position,
        rope=rope,
        layer_windows=(window if window < max_position else 0,) * num_layers,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        tie_word_embeddings="output.weight" not in file.by_name,
        qkv_bias=architecture.qkv_bias,
        qk_norm=architecture.qk_norm,
        dtype=_dtype(file),
        bos_token_id=next(iter(general.token_ids("tokenizer.ggml.bos_token_id", vocab_size)), None),
        eos_token_ids=_eos(general, vocab_size),
    )


def _divide(keys: Fields, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise keys.error("embedding_length", f"a multiple of attention.head_count {num_heads}")
    return hidden_size // num_heads


def _vocab_size(file: GGUFFile) -> int:
    embedding = file.by_name.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] > limits.MAX_VOCAB:
        raise ModelError(f"{file.path}: tensor token_embd.weight is missing or not [vocabulary, width]")
    return embedding.shape[0]


def _dtype(file: GGUFFile) -> str:
    matrix = file.by_name.get("blk.0.ffn_down.weight")
    return _CHECKPOINT_DTYPES.get(matrix.tensor_type.name, "bfloat16") if matrix else "bfloat16"


def _eos(general: Fields, vocab_size: int) -> tuple[int, ...]:
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    return tuple(dict.fromkeys(i for name in names for i in general.token_ids(f"tokenizer.ggml.{name}", vocab_size)))


def _rope(file: GGUFFile, keys: Fields, head_dim: int) -> tuple[RopeParameters, int]:
    """The rotary embedding and the context length that it gives."""
    max_position = keys.integer("context_length", 1, limits.MAX_POSITION)
    common: dict[str, Any] = {
        "rotary_dim": keys.integer("rope.dimension_count", 2, head_dim, head_dim),
        "theta": keys.number("rope.freq_base", 1.0 + 1e-6, 1e12, 10000.0),
    }
    kind = keys.string("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    factor = keys.number("rope.scaling.factor", 1.0, 1e4, None) or keys.number("rope.scale_linear", 1.0, 1e4, 1.0)
    if "rope_freqs.weight" in file.by_name:
        if kind != "none":
            raise ModelError(
                f"{file.path}: rope_freqs.weight together with rope scaling {kind[:40]!r} is not supported"
            )
        return RopeParameters(
            kind="factors", freq_factors=_freq_factors(file, common["rotary_dim"] // 2), **common
        ), max_position
    if kind == "none" or factor == 1.0:
        return RopeParameters(**common), max_position
    original = keys.integer("rope.scaling.original_context_length", 1, limits.MAX_POSITION, None)
    reach = min(max(max_position, int((original or max_position) * factor)), limits.MAX_POSITION)
    if kind == "linear":
        return RopeParameters(kind="linear", factor=factor, **common), reach
    if kind == "yarn":
        return _yarn(keys, common, factor, original or max_position), reach
    raise ModelError(f"{file.path}: rope scaling {kind[:40]!r} is not supported (have none, linear, yarn)")


def _yarn(keys: Fields, common: dict[str, Any], factor: float, original: int) -> RopeParameters:
    keys.refuse("rope.scaling.yarn_ext_factor", (None, 1.0))
    slow = keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0)
    attention = yarn_attention_factor(factor) * keys.number("rope.scaling.yarn_attn_factor", 1e-3, 1e3, 1.0)
    return RopeParameters(
        kind="yarn",
        factor=factor,
        original_max_position=original,
        beta_slow=slow,
        attention_factor=attention,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", slow, 1e6, 32.0),
        **common,
    )


def _freq_factors(file: GGUFFile, count: int) -> tuple[float, ...]:
    tensor = file.by_name["rope_freqs.weight"]
    if tensor.tensor_type.name != "F32" or tensor.shape != (count,):
        raise ModelError(
            f"{file.path}: tensor rope_freqs.weight must be F32 of {count} values, "
            f"got {tensor.tensor_type.name} {list(tensor.shape)}"
        )
    if not (np.isfinite(tensor.data) & (tensor.data > 0)).all():
        raise ModelError(f"{file.path}: tensor rope_freqs.weight holds values that are not positive numbers")
    return tuple(float(value) for value in tensor.data)
