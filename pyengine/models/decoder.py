"""The pre-norm decoder that Llama, Mistral, Qwen2 and Qwen3 share, as eight ops per layer.

A plain class over explicit tensors. Everything computed is one call into ``ops``; torch only makes views, because the
CPU backend records a pass and replays it without Python, as a CUDA graph does.

Each residual addition is fused with the RMSNorm that reads its sum, so a layer owns the norm that *follows* each of its
halves:

    residual = embedding(ids);  x = norm(residual)
    layer:    x = attention(x);  residual += x, x = norm(residual);  x = mlp(x);  residual += x, x = norm(residual)

The norm after the last MLP is the model's final one; ``forward`` returns its output and ``logits`` is the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyengine import ops
from pyengine.layers.context import ForwardContext
from pyengine.layers.rotary import cos_sin_table
from pyengine.models.config import ModelConfig
from pyengine.models.weights.parameter import Parameter


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer. Vectors are [width]; matrices are packed [out, in]."""

    qkv: ops.PackedWeight  # rows: all q heads, all k heads, all v heads
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None  # [head_dim]
    o: ops.PackedWeight
    norm_after_attention: torch.Tensor
    gate_up: ops.PackedWeight  # rows: gate, up
    down: ops.PackedWeight
    norm_after_mlp: torch.Tensor  # the next layer's input norm, or the final norm
    window: int
    turn: int  # 0, 1, 0, 1, ... among the layers of this window, which share a plan
    k_scale: torch.Tensor | None  # float32 [num_kv_heads], of an fp8 KV cache; None: 1
    v_scale: torch.Tensor | None


class Decoder:
    """A decoder with its weights.

    Attributes:
        config: what it is.
        weights: every weight by the name that ``parameters`` gave it.
        cos_sin: float32 [max_position, rotary_dim].
        has_kv_scales: some layer has scales of an fp8 KV cache.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any]) -> None:
        self.config = config
        self.weights = dict(weights)
        self.embed = weights["embed"]
        self.lm_head = self.embed if config.tie_word_embeddings else weights["lm_head"]
        self.first_norm = weights["layers.0.input_norm"]
        self.layers = tuple(self._layer(index) for index in range(config.num_layers))
        self.cos_sin = torch.from_numpy(cos_sin_table(config.rope, config.max_position)).to(self.first_norm.device)
        self.scale = config.head_dim**-0.5
        self.has_kv_scales = any(layer.k_scale is not None or layer.v_scale is not None for layer in self.layers)

    @staticmethod
    def parameters(config: ModelConfig) -> list[Parameter]:
        """All weights of the graph, with the checkpoint tensors that they are made of."""
        hidden = config.hidden_size
        embed = Parameter("embed", (("model.embed_tokens.weight", config.vocab_size),), hidden)
        layers = [p for index in range(config.num_layers) for p in _layer_parameters(config, index)]
        last = [Parameter("final_norm", (("model.norm.weight", hidden),))]
        if not config.tie_word_embeddings:
            last.append(Parameter("lm_head", (("lm_head.weight", config.vocab_size),), hidden))
        return [embed, *layers, *last]

    def _layer(self, index: int) -> DecoderLayer:
        def weight(name: str) -> Any:
            return self.weights.get(f"layers.{index}.{name}")

        window = self.config.layer_windows[index]
        next_norm = f"layers.{index + 1}.input_norm" if index + 1 < self.config.num_layers else "final_norm"
        return DecoderLayer(
            qkv=weight("qkv"),
            qkv_bias=weight("qkv_bias"),
            q_norm=weight("q_norm"),
            k_norm=weight("k_norm"),
            o=weight("o"),
            norm_after_attention=weight("mlp_norm"),
            gate_up=weight("gate_up"),
            down=weight("down"),
            norm_after_mlp=self.weights[next_norm],
            window=window,
            turn=self.config.layer_windows[:index].count(window) % 2,
            k_scale=weight("k_scale"),
            v_scale=weight("v_scale"),
        )

    def forward(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """Hidden states after the final norm, [T, hidden_size], or [N, hidden_size] for ``ctx.output_rows``.

        input_ids: int32 [T]. Writes this step's keys and values into ``ctx.kv_caches``.
        """
        eps = self.config.norm_eps
        residual = ops.embedding(input_ids, self.embed)
        x = ops.rms_norm(residual, self.first_norm, eps)
        for layer, kv_cache in zip(self.layers, ctx.kv_caches, strict=True):
            x = self._attention(layer, x, kv_cache, ctx)
            if layer is self.layers[-1] and ctx.output_rows is not None:
                x, residual = ops.gather_rows(x, ctx.output_rows), ops.gather_rows(residual, ctx.output_rows)
            x = ops.rms_norm(ops.linear(x, layer.o), layer.norm_after_attention, eps, residual)
            x = ops.linear(ops.linear_silu_mul(x, layer.gate_up), layer.down)
            x = ops.rms_norm(x, layer.norm_after_mlp, eps, residual)
        return x

    def _attention(
        self, layer: DecoderLayer, x: torch.Tensor, kv_cache: tuple[torch.Tensor, torch.Tensor], ctx: ForwardContext
    ) -> torch.Tensor:
        """Attention of the new tokens over everything cached, unprojected: [T, num_heads * head_dim]."""
        config, (k_cache, v_cache) = self.config, kv_cache
        qkv = ops.linear(x, layer.qkv, layer.qkv_bias)
        ops.rope_write_kv(
            qkv,
            ctx.positions,
            ctx.slot_mapping,
            self.cos_sin,
            k_cache,
            v_cache,
            config.num_heads,
            layer.q_norm,
            layer.k_norm,
            config.norm_eps,
            layer.k_scale,
            layer.v_scale,
        )
        q = qkv[:, : config.q_size].view(-1, config.num_heads, config.head_dim)
        meta, scales = ctx.attention_for(layer.window), {"k_scale": layer.k_scale, "v_scale": layer.v_scale}
        order = {"settled": True, "turn": layer.turn}
        out = ops.paged_attention(q, k_cache, v_cache, meta, self.scale, layer.window, **order, **scales)
        return out.view(-1, config.q_size)

    def try_products(self, num_tokens: int) -> None:
        """Compute a layer's products for so many tokens that say nothing, so that the first step of this size finds
        algorithms chosen and kernels loaded.
        """
        layer = self.layers[0]
        for weight, bias in ((layer.qkv, layer.qkv_bias), (layer.o, None), (layer.down, None)):
            ops.linear(_unwritten(num_tokens, weight), weight, bias)
        ops.linear_silu_mul(_unwritten(num_tokens, layer.gate_up), layer.gate_up)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [N, vocab_size] of hidden states [N, hidden_size] that ``forward`` returned, in ``out`` if given."""
        return ops.linear(hidden, self.lm_head, out_dtype=torch.float32, out=out)


def _unwritten(num_rows: int, weight: ops.PackedWeight) -> torch.Tensor:
    return torch.empty((num_rows, weight.k), dtype=weight.dtype, device=weight.data.device)


def _layer_parameters(config: ModelConfig, index: int) -> list[Parameter]:
    ours, theirs = f"layers.{index}.", f"model.layers.{index}."
    hidden, q, kv = config.hidden_size, config.q_size, config.kv_size

    def stacked(name: str, sources: dict[str, int], num_cols: int | None = None) -> Parameter:
        return Parameter(ours + name, tuple((theirs + source, rows) for source, rows in sources.items()), num_cols)

    def qkv(kind: str) -> dict[str, int]:
        return {f"self_attn.q_proj.{kind}": q, f"self_attn.k_proj.{kind}": kv, f"self_attn.v_proj.{kind}": kv}

    parameters = [
        stacked("input_norm", {"input_layernorm.weight": hidden}),
        stacked("qkv", qkv("weight"), hidden),
        stacked("o", {"self_attn.o_proj.weight": hidden}, q),
        stacked("mlp_norm", {"post_attention_layernorm.weight": hidden}),
        stacked(
            "gate_up",
            {"mlp.gate_proj.weight": config.intermediate_size, "mlp.up_proj.weight": config.intermediate_size},
            hidden,
        ),
        stacked("down", {"mlp.down_proj.weight": hidden}, config.intermediate_size),
    ]
    if config.qkv_bias:
        parameters.append(stacked("qkv_bias", qkv("bias")))
    if config.qk_norm:
        parameters += [
            stacked("q_norm", {"self_attn.q_norm.weight": config.head_dim}),
            stacked("k_norm", {"self_attn.k_norm.weight": config.head_dim}),
        ]
    return parameters
