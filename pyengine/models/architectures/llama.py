"""Llama 2, 3, 3.1, 3.2, SmolLM2 and their many relatives (arXiv 2307.09288, 2407.21783): the plain pre-norm decoder."""

from pyengine.models.registry import Architecture, register


@register
class Llama(Architecture):
    name = "LlamaForCausalLM"
    gguf_name = "llama"
    gguf_permuted_qk = True
