"""Mistral (arXiv 2310.06825): Llama with a sliding window on every layer, where the checkpoint has one.

GGUF files of Mistral call themselves ``llama`` and carry no window.
"""

from pyengine.models.fields import Fields
from pyengine.models.registry import Architecture, register


@register
class Mistral(Architecture):
    name = "MistralForCausalLM"

    def layer_windows(self, hf: Fields, num_layers: int) -> tuple[int, ...]:
        return (hf.integer("sliding_window", 1, 2**31 - 1, default=0),) * num_layers
