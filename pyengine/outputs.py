"""What ``LLM`` returns, in the shape that vLLM's users know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.text.generation import Generation


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
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None

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
        )


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
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
