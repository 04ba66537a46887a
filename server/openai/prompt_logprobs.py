"""Log-probabilities of prompts in both shapes: vLLM's ``prompt_logprobs``, and an echoed prompt among OpenAI's
``logprobs``. Nothing comes before the first token of a prompt, so it has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyengine.protocol import TokenLogprob
from pyengine.text.detokenizer import Detokenizer
from pyengine.text.generation import ScoredToken
from pyengine.text.tokenizer import Tokenizer
from server.openai.logprobs import FLOOR


def by_token_id(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], num_logprobs: int, tokenizer: Tokenizer
) -> list[dict | None]:
    """For each token of the prompt the token itself and the likeliest, by id (a string, as JSON wants it)."""
    scored = zip(token_ids[1:], logprobs, strict=True)
    return [None, *(_entries(token_id, each, num_logprobs, tokenizer) for token_id, each in scored)]


def _entries(token_id: int, each: TokenLogprob, num_logprobs: int, tokenizer: Tokenizer) -> dict:
    tops = list(zip(each.top_ids, each.top_logprobs, strict=True))[:num_logprobs]
    entries = {token_id: (each.logprob, each.rank), **{top: (value, rank) for rank, (top, value) in enumerate(tops, 1)}}
    return {
        str(i): {
            "logprob": max(logprob, FLOOR),
            "rank": rank,
            "decoded_token": tokenizer.id_to_bytes(i).decode("utf-8", "replace"),
        }
        for i, (logprob, rank) in entries.items()
    }


def echoed(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], num_logprobs: int, text: str, tokenizer: Tokenizer
) -> list[ScoredToken]:
    """The prompt's tokens as they stand in ``text``, its echo; what the tokenizer put before the text begins at 0."""
    scores = [None, *(_cut(each, num_logprobs) for each in logprobs)]
    offsets = _offsets(token_ids, text, tokenizer)
    return [ScoredToken(i, offset, each) for i, offset, each in zip(token_ids, offsets, scores, strict=True)]


def _cut(each: TokenLogprob, count: int) -> TokenLogprob:
    return TokenLogprob(each.logprob, each.rank, each.top_ids[:count], each.top_logprobs[:count])


def _offsets(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> Iterator[int]:
    """Characters of ``text`` before each token, which is the end of what all tokens spell."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    sizes = [len(detokenizer.push((token_id,))) for token_id in token_ids]
    position = len(text) - sum(sizes) - len(detokenizer.finish())
    for size in sizes:
        yield min(max(position, 0), len(text))
        position += size
