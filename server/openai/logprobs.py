"""Log-probabilities in the shapes of both endpoints."""

from __future__ import annotations

from collections.abc import Iterable

from pyengine.text.generation import ScoredToken
from pyengine.text.tokenizer import Tokenizer

FLOOR = -9999.0  # JSON has no minus infinity


class LogprobShapes:
    """``as_ids``: tokens are named ``token_id:7``, which tells apart those whose bytes are no text of their own."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False):
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def chat(self, scored: Iterable[ScoredToken]) -> dict:
        """``{"content": [{token, logprob, bytes, top_logprobs}]}``"""
        content = []
        for each in scored:
            tops = zip(each.logprob.top_ids, each.logprob.top_logprobs, strict=True)
            entry = self._entry(each.token_id, each.logprob.logprob)
            content.append({**entry, "top_logprobs": [self._entry(i, value) for i, value in tops]})
        return {"content": content}

    def completion(self, scored: Iterable[ScoredToken]) -> dict:
        """Four lists of equal length; the drawn token is among the likeliest even if it was not."""
        tokens, values, tops, offsets = [], [], [], []
        for each in scored:
            name = self._name(each.token_id)
            tokens.append(name)
            offsets.append(each.offset)
            if each.logprob is None:  # the first token of an echoed prompt
                values.append(None)
                tops.append(None)
                continue
            values.append(max(each.logprob.logprob, FLOOR))
            pairs = zip(each.logprob.top_ids, each.logprob.top_logprobs, strict=True)
            tops.append({name: values[-1], **{self._name(i): max(top, FLOOR) for i, top in pairs}})
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _entry(self, token_id: int, logprob: float) -> dict:
        data = self._tokenizer.id_to_bytes(token_id)
        return {"token": self._name(token_id), "logprob": max(logprob, FLOOR), "bytes": list(data)}

    def _name(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.id_to_bytes(token_id).decode("utf-8", "replace")
