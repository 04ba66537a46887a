"""What ``LLM`` returns, in the shape that vLLM's users know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.protocol import TokenLogprob
from pyengine.text.generation import Generation
from pyengine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Logprob:
    """Log-probability of a token at one place; rank 1 is the likeliest. ``decoded_token``: its text alone."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One of the n sequences of a request.

    Attributes:
        index: in [0, n).
        text: what was generated.
        token_ids: its ids, an ending stop or end-of-sequence token included.
        finish_reason: "stop", "length", "abort" or "error"; None while it runs.
        stop_reason: the stop string or stop token id that ended it; None otherwise.
        error: text when finish_reason is "error".
        logprobs: for each of token_ids the drawn token and the likeliest, by id; None when they were not asked for.
        cumulative_logprob: sum over the drawn tokens.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @classmethod
    def of(cls, generation: Generation) -> CompletionOutput:
        return cls(
            index=generation.index,
            text=generation.text,
            token_ids=list(generation.token_ids),
            finish_reason=generation.finish_reason,
            stop_reason=generation.stop_reason,
            error=generation.error,
            **_logprobs_of(generation),
        )


def _logprobs_of(generation: Generation) -> dict:
    if generation.params.logprobs is None:
        return {}
    pairs = list(zip(generation.token_ids, generation.logprobs, strict=True))
    return {
        "logprobs": [_by_id(token_id, each, generation.tokenizer) for token_id, each in pairs],
        "cumulative_logprob": sum(each.logprob for _, each in pairs),
    }


def _by_id(token_id: int, each: TokenLogprob, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The drawn token first, then the likeliest in order."""
    tops = enumerate(zip(each.top_ids, each.top_logprobs, strict=True), 1)
    entries = {token_id: (each.logprob, each.rank), **{top: (value, rank) for rank, (top, value) in tops}}
    return {
        i: Logprob(logprob, rank, tokenizer.id_to_bytes(i).decode("utf-8", "replace"))
        for i, (logprob, rank) in entries.items()
    }


@dataclass(frozen=True)
class EmbeddingOutput:
    """``embedding``: of Euclidean length 1."""

    embedding: list[float]


@dataclass(frozen=True)
class EmbeddingRequestOutput:
    """One prompt and its embedding. Attributes as of ``RequestOutput``."""

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: EmbeddingOutput
    finished: bool = True
    num_cached_tokens: int = 0


def prompt_logprobs_of(generation: Generation) -> list[dict[int, Logprob] | None] | None:
    """What ``RequestOutput.prompt_logprobs`` holds, from the first of a request's generations."""
    if generation.params.prompt_logprobs is None:
        return None
    pairs = zip(generation.prompt_token_ids[1:], generation.prompt_logprobs, strict=True)
    return [None, *(_by_id(token_id, each, generation.tokenizer) for token_id, each in pairs)]


@dataclass(frozen=True)
class RequestOutput:
    """One prompt and its n answers.

    Attributes:
        request_id: as the engine knew it.
        prompt: text of the prompt, None when token ids were given.
        prompt_token_ids: what the model saw.
        outputs: one for each of the n sequences, in order.
        finished: whether all of them have ended.
        num_cached_tokens: prompt tokens that the prefix cache already held.
        prompt_logprobs: for each prompt token it and the likeliest, by id; None at the first, before which nothing
            comes, and None for all when they were not asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
