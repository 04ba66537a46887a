"""What bounded thinking needs beside ``thinking``: the end mark as tokens to force, and an answer without a grammar.

Behind so many tokens of thinking only the end mark can be drawn, as the tokenizer writes it: a model knows its mark as
one special token, say, and not as letters. Where it has begun the mark in another way it goes on with any token that
fits.
"""

from __future__ import annotations

import numpy as np

from pyengine.text.tokenizer import Tokenizer


class Unbound:
    """``SequenceGrammar`` of an answer that may be anything; the same interface."""

    ready = True
    error = ""
    constrains = False
    complete = False
    bare_matcher = None

    def fill_mask(self, masks: np.ndarray, index: int) -> None:
        masks[index] = -1

    def accept(self, token_id: int) -> bool:
        return True

    def allows(self, token_id: int) -> bool:
        return True

    def restart(self) -> None:
        pass


def spelling(mark: bytes, tokenizer: Tokenizer, vocab_size: int) -> dict[int, int]:
    """The tokens of a mark as the tokenizer writes it, by how many of its bytes stand before each; none where these are
    not the mark alone.
    """
    ids, at, found = tokenizer.encode(mark.decode(), False), 0, {}
    for token_id in ids:
        found[at] = token_id
        at += len(tokenizer.id_to_bytes(token_id))
    spelled = b"".join(map(tokenizer.id_to_bytes, ids))
    return found if spelled == mark and max(ids) < vocab_size else {}
