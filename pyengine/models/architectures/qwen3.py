"""Qwen3, the dense models (arXiv 2505.09388): Qwen2 with an RMSNorm of each q and k head in place of the biases."""

from pyengine.models.architectures.qwen2 import qwen_layer_windows
from pyengine.models.fields import Fields
from pyengine.models.registry import Architecture, register


@register
class Qwen3(Architecture):
    name = "Qwen3ForCausalLM"
    gguf_name = "qwen3"
    qk_norm = True
    default_head_dim = 128

    def layer_windows(self, hf: Fields, num_layers: int) -> tuple[int, ...]:
        return qwen_layer_windows(hf, num_layers)
