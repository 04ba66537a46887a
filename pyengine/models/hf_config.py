"""ModelConfig from a Hugging Face folder: config.json, and the end tokens of generation_config.json.

Reads both spellings of the rotary settings: ``rope_theta`` with ``rope_scaling`` (transformers up to 4) and
``rope_parameters`` (from 5 on).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyengine.errors import ModelError
from pyengine.layers.rotary import RopeParameters, yarn_attention_factor
from pyengine.models import config as limits
from pyengine.models.config import ModelConfig
from pyengine.models.fields import Fields
from pyengine.models.registry import find_architecture

_MAX_JSON_BYTES = 16 * 2**20
_REFUSED = (
    "compression_config",
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_local_experts",
    "num_experts",
    "kv_lora_rank",
)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file; every way to fail is a one-line ModelError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_JSON_BYTES} bytes, which no configuration is")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_folder(folder: Path) -> ModelConfig:
    """From ``folder``/config.json. Raises ModelError."""
    values = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    extra = read_json(generation) if generation.is_file() else {}
    return parse(values, str(folder / "config.json"), Fields(extra, str(generation)))


def parse(values: dict[str, Any], where: str, generation: Fields | None = None) -> ModelConfig:
    """From the contents of config.json; ``where`` names it in errors."""
    hf = Fields(values, where)
    architecture = find_architecture(tuple(hf.strings("architectures", ())), where)
    for key in _REFUSED:
        hf.refuse(key)
    if not _quantizes_only_the_kv_cache(hf):
        hf.refuse("quantization_config")
    hf.refuse("hidden_act", (None, "silu", "swish"))
    vocab_size = hf.integer("vocab_size", 1, limits.MAX_VOCAB)
    hidden_size = hf.integer("hidden_size", 1, limits.MAX_HIDDEN)
    num_layers = hf.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
    num_heads = hf.integer("num_attention_heads", 1, limits.MAX_HEADS)
    head_dim = hf.integer("head_dim", 8, limits.MAX_HEAD_DIM, architecture.default_head_dim) or _divide(
        hf, hidden_size, num_heads
    )
    rope, max_position = _rope(hf, head_dim)
    windows = architecture.layer_windows(hf, num_layers)
    eos = hf.token_ids("eos_token_id", vocab_size) + (
        generation.token_ids("eos_token_id", vocab_size) if generation else ()
    )
    return ModelConfig(
        architecture=architecture.name,
        source=where,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        intermediate_size=hf.integer("intermediate_size", 1, limits.MAX_INTERMEDIATE),
        num_heads=num_heads,
        head_dim=head_dim,
        num_kv_heads=hf.integer("num_key_value_heads", 1, limits.MAX_HEADS, default=num_heads),
        max_position=max_position,
        rope=rope,
        layer_windows=tuple(w if w < max_position else 0 for w in windows),
        norm_eps=hf.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        tie_word_embeddings=hf.boolean("tie_word_embeddings", False),
        qkv_bias=architecture.qkv_bias,
        qk_norm=architecture.qk_norm,
        dtype=_dtype(hf),
        bos_token_id=next(iter(hf.token_ids("bos_token_id", vocab_size)), None),
        eos_token_ids=tuple(dict.fromkeys(eos)),
    )


def _quantizes_only_the_kv_cache(hf: Fields) -> bool:
    """compressed-tensors with a static fp8 scheme for the KV cache and none for weights or activations: the weights
    are plain, and the scales are there for whoever runs with --kv-cache-dtype fp8.
    """
    value = hf.values.get("quantization_config")
    if not isinstance(value, dict) or value.get("quant_method") != "compressed-tensors":
        return False
    scheme, groups = value.get("kv_cache_scheme"), value.get("config_groups")
    if not isinstance(scheme, dict) or groups:
        return False
    wanted = {"num_bits": 8, "type": "float", "symmetric": True}
    return all(scheme.get(key) == each for key, each in wanted.items()) and not scheme.get("dynamic")


def _divide(hf: Fields, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise hf.error("hidden_size", f"a multiple of num_attention_heads {num_heads}")
    return hidden_size // num_heads


def _dtype(hf: Fields) -> str:
    key = "dtype" if "dtype" in hf else "torch_dtype"
    name = hf.string(key, "bfloat16").removeprefix("torch.")
    if name not in limits.DTYPE_BYTES:
        raise hf.error(key, f"one of {', '.join(limits.DTYPE_BYTES)}")
    return name


def _rope(hf: Fields, head_dim: int) -> tuple[RopeParameters, int]:
    """The rotary embedding and the context length that it gives."""
    max_position = hf.integer("max_position_embeddings", 1, limits.MAX_POSITION)
    section = hf.section("rope_parameters") or hf.section("rope_scaling") or Fields({}, hf.where)
    kind = section.string("rope_type", None) or section.string("type", "default")
    theta = section.number("rope_theta", 1.0 + 1e-6, 1e12, None) or hf.number("rope_theta", 1.0 + 1e-6, 1e12, 10000.0)
    partial = section.number("partial_rotary_factor", 0.0, 1.0, None) or hf.number(
        "partial_rotary_factor", 0.0, 1.0, 1.0
    )
    common = {"theta": theta, "rotary_dim": int(head_dim * partial)}
    if any(isinstance(value, dict) for value in section.values.values()):
        raise ModelError(f"{section.where}: a rotary embedding per layer type is not supported")
    if kind == "default":
        return RopeParameters(**common), max_position
    factor = section.number("factor", 1.0, 1e4)
    if kind == "linear":
        return RopeParameters(kind=kind, factor=factor, **common), min(int(max_position * factor), limits.MAX_POSITION)
    top_level = hf.integer("original_max_position_embeddings", 1, limits.MAX_POSITION, None)
    original = top_level or section.integer("original_max_position_embeddings", 1, limits.MAX_POSITION, max_position)
    common.update(kind=kind, factor=factor, original_max_position=original)
    if kind == "llama3":
        return _llama3(section, common), max_position
    if kind == "yarn":
        return _yarn(section, common), min(max(max_position, int(original * factor)), limits.MAX_POSITION)
    raise ModelError(f"{section.where}: rope type {kind[:40]!r} is not supported (have default, linear, llama3, yarn)")


def _llama3(section: Fields, common: dict[str, Any]) -> RopeParameters:
    low = section.number("low_freq_factor", 1e-3, 1e6)
    return RopeParameters(
        low_freq_factor=low, high_freq_factor=section.number("high_freq_factor", low + 1e-6, 1e7), **common
    )


def _yarn(section: Fields, common: dict[str, Any]) -> RopeParameters:
    inferred = yarn_attention_factor(
        common["factor"], section.number("mscale", 0.0, 100.0, None), section.number("mscale_all_dim", 0.0, 100.0, None)
    )
    slow = section.number("beta_slow", 1e-3, 1e6, 1.0)
    return RopeParameters(
        attention_factor=section.number("attention_factor", 1e-3, 1e3, inferred),
        beta_slow=slow,
        beta_fast=section.number("beta_fast", slow, 1e6, 32.0),
        truncate=section.boolean("truncate", True),
        **common,
    )
