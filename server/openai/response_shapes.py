"""The Responses API's object and the events of a streamed one. No I/O.

An answer is a list of items (reasoning, message, function_call); streamed, each item is added, grown and done before
the next one. The last event holds the whole response.
"""

from __future__ import annotations

import secrets
import time

import msgspec

from pyengine.text.answer_parts import CallArguments, CallBegin, Part, Reasoning
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.message import Message, MessageForm
from pyengine.text.responses import ResponsesRequest


class ResponseShapes:
    """One answer, from one generation."""

    def __init__(
        self, model: str, asked: ResponsesRequest, form: MessageForm, generation: Generation, num_prompt_tokens: int
    ):
        self._model = model
        self._asked = asked
        self._form = form
        self._generation = generation
        self._num_prompt_tokens = num_prompt_tokens
        self._message = Message(form, generation)
        self._id = f"resp_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._items: list[dict] = []
        self._num_events = 0
        self._grows = False  # the last item, by these texts
        self._texts: list[str] = []

    def whole(self) -> dict:
        self.events(TextDelta(self._generation.text, finish_reason=self._generation.finish_reason))
        return self._response(self._status())

    def opening(self) -> list[dict]:
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def events(self, delta: TextDelta) -> list[dict]:
        out: list[dict] = []
        for part in self._message.push(delta):
            self._grow(part, out)
        if delta.finish_reason is not None:
            status = self._status()
            self._end_item(out, status)
            out.append(self._event(f"response.{status}", response=self._response(status)))
        return out

    def error(self, message: str, code: str | int | None) -> dict:
        return self._event("error", code=None if code is None else str(code), message=message, param=None)

    def _grow(self, part: Part, out: list[dict]) -> None:
        if isinstance(part, CallBegin):
            self._begin_item(_call(part.name), out)
        elif isinstance(part, CallArguments):
            self._texts.append(part.text)
            out.append(self._on_item("response.function_call_arguments.delta", delta=part.text))
        else:
            kind = "reasoning" if isinstance(part, Reasoning) else "message"
            if not self._grows or self._items[-1]["type"] != kind:
                self._begin_item(_reasoning() if kind == "reasoning" else _message(), out)
                out.append(self._on_part("response.content_part.added", part=dict(self._items[-1]["content"][0])))
            self._texts.append(part.text)
            out.append(self._on_part(f"response.{_text_kind(kind)}.delta", delta=part.text, **_no_logprobs(kind)))

    def _begin_item(self, item: dict, out: list[dict]) -> None:
        self._end_item(out)
        self._items.append(item)
        self._texts, self._grows = [], True
        shown = {**item, "content": []} if "content" in item else dict(item)
        out.append(self._on_item("response.output_item.added", item=shown))

    def _end_item(self, out: list[dict], status: str = "completed") -> None:
        if not self._grows:
            return
        self._grows = False
        item = self._items[-1]
        if "status" in item:
            item["status"] = status
        text = "".join(self._texts)
        if item["type"] == "function_call":
            item["arguments"] = text
            done = {"arguments": item["arguments"], "name": item["name"]}
            out.append(self._on_item("response.function_call_arguments.done", **done))
        else:
            (part,) = item["content"]
            kind, part["text"] = item["type"], text
            out.append(self._on_part(f"response.{_text_kind(kind)}.done", text=text, **_no_logprobs(kind)))
            out.append(self._on_part("response.content_part.done", part=part))
        out.append(self._on_item("response.output_item.done", item=item))

    def _event(self, kind: str, **fields: object) -> dict:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _on_item(self, kind: str, **fields: object) -> dict:
        place = {"output_index": len(self._items) - 1}
        if "item" not in fields:
            place["item_id"] = self._items[-1]["id"]
        return self._event(kind, **place, **fields)

    def _on_part(self, kind: str, **fields: object) -> dict:
        return self._on_item(kind, content_index=0, **fields)

    def _status(self) -> str:
        return "incomplete" if self._generation.finish_reason == "length" else "completed"

    def _response(self, status: str) -> dict:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._model,
            "output": list(self._items),
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": self._generation.params.temperature,
            "top_p": self._generation.params.top_p,
            "text": asked.text or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "metadata": asked.metadata or {},
        }

    def _usage(self) -> dict:
        num_output = self._generation.num_output_tokens
        return {
            "input_tokens": self._num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._generation.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": num_output,
            "output_tokens_details": {"reasoning_tokens": self._message.num_reasoning_tokens},
            "total_tokens": self._num_prompt_tokens + num_output,
        }


def event(payload: dict) -> bytes:
    """A server-sent event, named as its payload's type."""
    return b"event: " + payload["type"].encode() + b"\ndata: " + msgspec.json.encode(payload) + b"\n\n"


def _text_kind(item_kind: str) -> str:
    return "reasoning_text" if item_kind == "reasoning" else "output_text"


def _no_logprobs(item_kind: str) -> dict:
    return {"logprobs": []} if item_kind == "message" else {}


def _message() -> dict:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    head = {"type": "message", "id": f"msg_{secrets.token_hex(16)}", "role": "assistant", "status": "in_progress"}
    return {**head, "content": [part]}


def _reasoning() -> dict:
    part = {"type": "reasoning_text", "text": ""}
    return {"type": "reasoning", "id": f"rs_{secrets.token_hex(16)}", "summary": [], "content": [part]}


def _call(name: str) -> dict:
    ids = {"id": f"fc_{secrets.token_hex(16)}", "call_id": f"call_{secrets.token_hex(12)}"}
    return {"type": "function_call", **ids, "name": name, "arguments": "", "status": "in_progress"}
