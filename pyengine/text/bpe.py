"""Byte-pair tokenizers on the ``tokenizers`` library: ``tokenizer.json`` as it is, and vocabularies built in memory.

The backend reads the file's decoder once and reduces it to one question, which bytes an id stands for: through the
GPT-2 byte alphabet (byte-level models) or with ``<0xNN>`` pieces and a space symbol (sentencepiece models converted to
tokenizer.json). A decoder that is neither is refused by name rather than decoded wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import tokenizers

from pyengine.errors import ModelError, RequestError
from pyengine.text.library_errors import library_errors


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: each of the 256 bytes as one character (printable Latin-1 stands for itself)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(hidden)})
    return alphabet


BYTE_OF_CHAR = _byte_alphabet()


class BpeBackend:
    """A ``tokenizers.Tokenizer`` behind the ``Backend`` interface."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: str):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._decoder = _Decoder.of(tokenizer, source)
        self.strip_leading_space = self._decoder.strip_leading_space
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)

    def encode(self, text: str, post_process: bool) -> list[int]:
        with library_errors(RequestError, "the text cannot be tokenised"):
            # The batch call releases the GIL, the single one does not.
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=post_process)[0].ids

    def token_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.content.encode("utf-8", "replace")
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._decoder.bytes_of(token)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


class _Decoder:
    """The decoder section of a tokenizer.json, reduced to bytes per token."""

    def __init__(self) -> None:
        self.byte_level = False
        self.byte_fallback = False
        self.replacements: list[tuple[str, str]] = []
        self.strip_leading_space = False

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, source: str) -> _Decoder:
        if tokenizer.decoder is None:
            raise ModelError(f"{source}: has no decoder, so ids cannot become text")
        decoder = cls()
        for step in _flatten(json.loads(tokenizer.decoder.__getstate__())):
            if not decoder._apply(step):
                raise ModelError(f"{source}: decoder {json.dumps(step)[:200]} is not supported")
        return decoder

    def _apply(self, step: dict) -> bool:
        kind = step.get("type")
        if kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Replace" and "String" in step["pattern"]:
            self.replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            self.replacements.append((step["replacement"], " "))
            self.strip_leading_space = step.get("prepend_scheme", "always") != "never"
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0 and step["start"] <= 1:
            self.strip_leading_space = step["start"] == 1
        else:
            return kind == "Fuse"
        return True

    def bytes_of(self, token: str) -> bytes:
        if self.byte_level:
            data = [BYTE_OF_CHAR.get(char) for char in token]
            return token.encode("utf-8") if None in data else bytes(data)
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


def _flatten(section: dict) -> Iterator[dict]:
    if section.get("type") == "Sequence":
        for step in section["decoders"]:
            yield from _flatten(step)
    else:
        yield section


def read_tokenizer_json(path: Path) -> BpeBackend:
    """A ``tokenizer.json``; raises ModelError naming the file."""
    with library_errors(ModelError, f"{path}: not a usable tokenizer"):
        return BpeBackend(tokenizers.Tokenizer.from_file(str(path)), str(path))
