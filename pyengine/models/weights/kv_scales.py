"""Scales of an fp8 KV cache from a checkpoint: ``model.layers.N.self_attn.k_scale`` and ``v_scale``, each a number for
the layer or one for every kv head. An element e of such a cache stands for e * scale. What a checkpoint does not have
is 1.
"""

from __future__ import annotations

import re

import torch

from pyengine.errors import ModelError
from pyengine.models.config import ModelConfig
from pyengine.models.weights.source import WeightSource

_NAME = re.compile(r"model\.layers\.(\d{1,4})\.self_attn\.([kv]_scale)")


def is_kv_scale(name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint's tensor is a scale of one of the model's layers."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match[1]) < config.num_layers


def read_kv_scales(source: WeightSource, config: ModelConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """Those that the source has, as "layers.3.k_scale": float32 [num_kv_heads].

    Raises:
        ModelError: a scale of another shape, or not positive and finite.
    """
    scales = {}
    for name in filter(lambda name: is_kv_scale(name, config), source.shapes):
        shape = tuple(source.shapes[name])
        if shape not in ((), (1,), (config.num_kv_heads,)):
            raise ModelError(
                f"{source.where(name)}: tensor {name} has shape {list(shape)}, expected one number or one for each of "
                f"{config.num_kv_heads} kv heads"
            )
        values = source.load(name, torch.float32, torch.device("cpu")).reshape(-1)
        if not (values.isfinite() & (values > 0)).all():
            raise ModelError(f"{source.where(name)}: tensor {name} must be positive, got {values.tolist()[:3]}")
        layer, kind = _NAME.fullmatch(name).groups()
        scales[f"layers.{int(layer)}.{kind}"] = values.expand(config.num_kv_heads).contiguous().to(device)
    return scales
