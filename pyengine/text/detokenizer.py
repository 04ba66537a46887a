"""Ids to text while they arrive.

Every token is a run of bytes, so decoding needs no look back: bytes are decoded as far as characters are whole, and the
begin of an unfinished one waits for its rest. Each push costs its own tokens and nothing of the past, and the
concatenated deltas are exactly ``Tokenizer.decode`` of all ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from pyengine.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one growing sequence.

    ``prompt_token_ids`` tells only whether text comes before: a tokenizer whose decoding drops the very first space
    keeps the space of a continuation. ``shown_ids`` are never skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ):
        self._bytes_of = tokenizer.id_to_bytes
        self._skipped = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._pending = b""  # the begin of an unfinished character
        self._strip_space = tokenizer.strip_leading_space and not self._has_text(prompt_token_ids)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became complete with these ids; never half a character."""
        skipped, bytes_of = self._skipped, self._bytes_of
        data = b"".join([bytes_of(token_id) for token_id in token_ids if token_id not in skipped])
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        data = self._pending + data
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[num_used:]
        return text

    def push_one(self, token_id: int) -> str:
        """``push((token_id,))``, for less where the token is whole characters, as nearly all are."""
        if self._pending or self._strip_space or token_id in self._skipped:
            return self.push((token_id,))
        data = self._bytes_of(token_id)
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        if num_used < len(data):
            self._pending = data[num_used:]
        return text

    def finish(self) -> str:
        """What is left when no more ids come: U+FFFD for a character that was never completed."""
        data, self._pending = self._pending, b""
        return data.decode("utf-8", "replace")

    def _has_text(self, token_ids: Sequence[int]) -> bool:
        return any(i not in self._skipped and self._bytes_of(i) for i in reversed(token_ids))
