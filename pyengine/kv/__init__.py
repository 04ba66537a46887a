"""Bookkeeping of the paged KV cache: which block holds what. Pure Python; block contents are the runner's."""
