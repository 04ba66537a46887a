"""A stand-in tokenizer for random weights, whose folder holds a config.json and nothing else.

Text is its UTF-8 bytes, ids 0 to 255; every other id shows as its number, so that each token of a benchmark is visible.
"""

from __future__ import annotations

from pyengine.text.tokenizer import Tokenizer, TokenizerFacts


class ByteBackend:
    """See ``Backend``."""

    vocab_size = 1 << 31
    strip_leading_space = False

    def encode(self, text: str, post_process: bool) -> list[int]:
        return list(text.encode("utf-8"))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,)) if token_id < 256 else f"<{token_id}>".encode()

    def token_to_id(self, token: str) -> int | None:
        data = token.encode("utf-8")
        return data[0] if len(data) == 1 else None


def make_byte_tokenizer() -> Tokenizer:
    """No special tokens, no end of sequence, no chat template."""
    return Tokenizer(ByteBackend(), TokenizerFacts())
