"""Reading of weights: sources (safetensors, GGUF, dummy) yield tensors by Hugging Face name, the loader places them."""
