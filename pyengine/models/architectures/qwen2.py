"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on q, k, v.

The upper layers may have a sliding window.
"""

from pyengine.models.fields import Fields
from pyengine.models.registry import Architecture, register

_WINDOWED = {"full_attention": False, "sliding_attention": True}


@register
class Qwen2(Architecture):
    name = "Qwen2ForCausalLM"
    gguf_name = "qwen2"
    qkv_bias = True

    def layer_windows(self, hf: Fields, num_layers: int) -> tuple[int, ...]:
        return qwen_layer_windows(hf, num_layers)


def qwen_layer_windows(hf: Fields, num_layers: int) -> tuple[int, ...]:
    """Windows apply only under use_sliding_window: to the layers in layer_types, or else from max_window_layers on."""
    window = hf.integer("sliding_window", 1, 2**31 - 1, default=0) if hf.boolean("use_sliding_window", False) else 0
    if "layer_types" in hf:
        kinds = hf.strings("layer_types")
        if len(kinds) != num_layers or not set(kinds) <= set(_WINDOWED):
            raise hf.error("layer_types", f"a list of {num_layers} kinds, each of {' or '.join(_WINDOWED)}")
        return tuple(window if _WINDOWED[kind] else 0 for kind in kinds)
    first = hf.integer("max_window_layers", 0, 2**31 - 1, default=28)
    return tuple(window if layer >= first else 0 for layer in range(num_layers))
