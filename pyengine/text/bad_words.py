"""``bad_words`` as the token sequences that they may come out as: at the beginning of a text and behind a space."""

from __future__ import annotations

import msgspec

from pyengine.errors import RequestError
from pyengine.sampling_params import MAX_BAD_WORD_TOKENS, SamplingParams
from pyengine.text.tokenizer import Tokenizer, check_encodable

MAX_BAD_WORD_CHARS = 256


def with_bad_words(params: SamplingParams, tokenizer: Tokenizer, vocab_size: int) -> SamplingParams:
    """``params`` with ``bad_words_token_ids`` filled in from ``bad_words``, where there are any.

    Each word is taken without its own leading space, both as it is and with one space in front. A sequence that ends
    in another one needs no place of its own. Raises RequestError for a word that is no token or too many.
    """
    if not params.bad_words:
        return params
    sequences: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        sequences.update(dict.fromkeys(_sequences(word, tokenizer, vocab_size)))
    return msgspec.structs.replace(params, bad_words_token_ids=tuple(sequences))


def _sequences(word: str, tokenizer: Tokenizer, vocab_size: int) -> list[tuple[int, ...]]:
    if len(word) > MAX_BAD_WORD_CHARS:
        raise RequestError(
            f"a bad word may have at most {MAX_BAD_WORD_CHARS} characters, got {len(word)}", param="bad_words"
        )
    check_encodable(word, "bad_words")
    bare = word.lstrip() or word
    plain, spaced = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, " " + bare))
    for sequence in (plain, spaced):
        if not 1 <= len(sequence) <= MAX_BAD_WORD_TOKENS:
            raise RequestError(
                f"a bad word must have 1 to {MAX_BAD_WORD_TOKENS} tokens, {word[:80]!r} has {len(sequence)}",
                param="bad_words",
            )
        if max(sequence) >= vocab_size:
            raise RequestError(f"the model has no logits for the bad word {word[:80]!r}", param="bad_words")
    return [plain] if spaced[-len(plain) :] == plain else [plain, spaced]
