"""Anthropic's message object and the events of a streamed one. No I/O.

A message is a list of blocks (thinking, text, tool_use); streamed, each block is opened, grown and closed before the
next one.
"""

from __future__ import annotations

import json
import secrets

import msgspec

from pyengine.text.answer_parts import CallArguments, CallBegin, Content, Part, Reasoning
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.message import Message, MessageForm

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(message: str, status: int) -> dict:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def event(payload: dict) -> bytes:
    """A server-sent event, named as its payload's type."""
    return b"event: " + payload["type"].encode() + b"\ndata: " + msgspec.json.encode(payload) + b"\n\n"


class MessageShapes:
    """One answer, from one generation."""

    def __init__(self, model: str, form: MessageForm, generation: Generation, num_prompt_tokens: int):
        self._model = model
        self._form = form
        self._generation = generation
        self._num_prompt_tokens = num_prompt_tokens
        self._message = Message(form, generation)
        self._id = f"msg_{secrets.token_hex(12)}"
        self._open: str | None = None  # kind of the block that grows
        self._index = -1

    def whole(self) -> dict:
        """What the events of the finished answer come to."""
        again = MessageShapes(self._model, self._form, self._generation, self._num_prompt_tokens)
        blocks: list[dict] = []
        for each in again.events(TextDelta(self._generation.text, finish_reason=self._generation.finish_reason)):
            if each["type"] == "content_block_start":
                blocks.append(each["content_block"])
            elif each["type"] == "content_block_delta":
                _add(blocks[-1], each["delta"])
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = _input(block["input"])
        return self._envelope(blocks, *self._stop(again._message, self._generation.finish_reason))

    def opening(self) -> dict:
        return {"type": "message_start", "message": self._envelope([], None, None)}

    def events(self, delta: TextDelta) -> list[dict]:
        out: list[dict] = []
        for part in self._message.push(delta):
            self._grow(part, out)
        if delta.finish_reason is not None:
            self._close(out)
            reason, sequence = self._stop(self._message, delta.finish_reason)
            end = {"stop_reason": reason, "stop_sequence": sequence}
            out += [{"type": "message_delta", "delta": end, "usage": self._usage()}, {"type": "message_stop"}]
        return out

    def _grow(self, part: Part, out: list[dict]) -> None:
        if isinstance(part, CallBegin):
            self._begin("tool_use", self._tool_use(part.name), out)
            return
        if isinstance(part, CallArguments):
            change = {"type": "input_json_delta", "partial_json": part.text}
        elif isinstance(part, Reasoning):
            change = {"type": "thinking_delta", "thinking": part.text}
            if self._open != "thinking":
                self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""}, out)
        elif isinstance(part, Content):
            change = {"type": "text_delta", "text": part.text}
            if self._open != "text":
                self._begin("text", {"type": "text", "text": ""}, out)
        out.append({"type": "content_block_delta", "index": self._index, "delta": change})

    def _begin(self, kind: str, block: dict, out: list[dict]) -> None:
        self._close(out)
        self._open = kind
        self._index += 1
        out.append({"type": "content_block_start", "index": self._index, "content_block": block})

    def _close(self, out: list[dict]) -> None:
        if self._open is not None:
            out.append({"type": "content_block_stop", "index": self._index})
            self._open = None

    @staticmethod
    def _tool_use(name: str) -> dict:
        return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}}

    def _stop(self, message: Message, reason: str) -> tuple[str, str | None]:
        sequence = self._generation.stop_reason
        if isinstance(sequence, str):
            return "stop_sequence", sequence
        reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        return reasons.get(message.finish_reason(reason), "end_turn"), None

    def _envelope(self, blocks: list[dict], stop_reason: str | None, stop_sequence: str | None) -> dict:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self._usage(),
        }

    def _usage(self) -> dict:
        """Anthropic counts prompt tokens out of the cache apart from the others."""
        num_cached = self._generation.num_cached_tokens
        return {
            "input_tokens": self._num_prompt_tokens - num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached,
            "output_tokens": self._generation.num_output_tokens,
        }


def _add(block: dict, change: dict) -> None:
    """A change of an event, to the block that grows; the input of a call stays text until it is whole."""
    if change["type"] == "input_json_delta":
        block["input"] = (block["input"] or "") + change["partial_json"]
    else:
        kind = block["type"]
        block[kind] += change[kind]


def _input(arguments: str | dict) -> dict:
    """A call that was cut off has no input that JSON could say."""
    if isinstance(arguments, dict):  # not a piece of it came
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return {}
