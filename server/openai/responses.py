"""The shapes of answers: whole objects and stream chunks of both endpoints, as OpenAI's API reference defines them. No
I/O.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from pyengine.text.generation import Generation


@dataclass(frozen=True)
class Head:
    """What all objects of one answer share."""

    prefix: str  # "chatcmpl" or "cmpl"
    model: str
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.prefix}-{secrets.token_hex(16)}")
        object.__setattr__(self, "created", int(time.time()))

    def envelope(self, kind: str, choices: list[dict], **more: object) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}


def usage(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int) -> dict:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


class ChatShapes:
    """``chat.completion`` and its chunks."""

    def __init__(self, model: str):
        self.head = Head("chatcmpl", model)

    def whole(self, generations: list[Generation], usage: dict) -> dict:
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": None,
                "finish_reason": generation.finish_reason,
                "stop_reason": generation.stop_reason,
            }
            for i, generation in enumerate(generations)
        ]
        return self.head.envelope("chat.completion", choices, usage=usage)

    def opening(self, index: int) -> dict | None:
        return self._chunk([self._choice(index, {"role": "assistant", "content": ""})])

    def delta(self, index: int, text: str) -> dict:
        return self._chunk([self._choice(index, {"content": text})])

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> dict:
        return self._chunk([{**self._choice(index, {}), "finish_reason": finish_reason, "stop_reason": stop_reason}])

    def usage_chunk(self, usage: dict) -> dict:
        return self._chunk([], usage=usage)

    @staticmethod
    def _choice(index: int, delta: dict) -> dict:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[dict], **more: object) -> dict:
        return self.head.envelope("chat.completion.chunk", choices, **more)


class CompletionShapes:
    """``text_completion``, whole and in chunks (both have the same object name)."""

    def __init__(self, model: str):
        self.head = Head("cmpl", model)

    def whole(self, generations: list[Generation], usage: dict) -> dict:
        choices = [
            self._choice(i, generation.text, generation.finish_reason, generation.stop_reason)
            for i, generation in enumerate(generations)
        ]
        return self.head.envelope("text_completion", choices, usage=usage)

    def opening(self, index: int) -> dict | None:
        return None

    def delta(self, index: int, text: str) -> dict:
        return self.head.envelope("text_completion", [self._choice(index, text)])

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> dict:
        return self.head.envelope("text_completion", [self._choice(index, "", finish_reason, stop_reason)])

    def usage_chunk(self, usage: dict) -> dict:
        return self.head.envelope("text_completion", [], usage=usage)

    @staticmethod
    def _choice(index: int, text: str, finish_reason: str | None = None, stop_reason: str | int | None = None) -> dict:
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
