"""Reading of weights: sources (safetensors, GGUF, dummy) yield tensors by Hugging Face names, the loader places them."""
