"""The shapes of answers: whole objects and stream chunks of both endpoints, as OpenAI's API reference defines them. No
I/O.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyengine.text.answer_parts import CallBegin, Content, Part, Reasoning
from pyengine.text.generation import Generation, ScoredToken, TextDelta
from pyengine.text.message import Message
from pyengine.text.processor import TextProcessor
from pyengine.text.validation import PreparedPrompt, PreparedRequest
from server.openai import prompt_logprobs
from server.openai.logprobs import LogprobShapes


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


class _Shapes:
    """What both endpoints' shapes are made from: the request's wishes and the tokenizer."""

    def __init__(self, head: Head, prepared: PreparedRequest, text: TextProcessor):
        self.head = head
        self._prepared = prepared
        self._form = prepared.form
        self._logprobs = LogprobShapes(text.tokenizer, prepared.form.tokens_as_ids)
        self._num_logprobs = prepared.prompts[0].params.logprobs
        self._wants_logprobs = self._num_logprobs is not None
        self._text_alone = not self._wants_logprobs and not self._form.return_token_ids
        self._tokenizer = text.tokenizer
        self._n = prepared.prompts[0].params.n

    def text_alone(self, index: int, generation: Generation, delta: TextDelta) -> str | None:
        """The text of a delta whose only chunk is ``text_chunk`` of it; None, and nothing taken, for all others. Nearly
        every token is the former, and its event need not be made anew.
        """
        return delta.text if self._text_alone and delta.text and delta.finish_reason is None else None

    def _prompt_of(self, choice: int) -> PreparedPrompt:
        """Choice index: prompt i, sequence j of n -> i * n + j."""
        return self._prepared.prompts[choice // self._n]

    def _prompt_logprobs(self, first: Generation) -> dict:
        """The field of that name, where it was asked for, from the first generation of a prompt."""
        count = self._form.prompt_logprobs
        if count is None:
            return {}
        scores = first.prompt_token_ids, first.prompt_logprobs
        return {"prompt_logprobs": prompt_logprobs.by_token_id(*scores, count, self._tokenizer)}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ChatShapes(_Shapes):
    """``chat.completion`` and its chunks. One object for each answer."""

    def __init__(self, model: str, prepared: PreparedRequest, text: TextProcessor):
        super().__init__(Head("chatcmpl", model), prepared, text)
        self._messages: dict[int, Message] = {}
        self._call_id_chars = self._form.message.tools.call_id_chars if self._form.message.tools else 0

    @property
    def num_reasoning_tokens(self) -> int | None:
        """None where the model does not think."""
        if self._form.message.reasoning is None:
            return None
        return sum(message.num_reasoning_tokens for message in self._messages.values())

    def whole(self, generations: list[Generation]) -> dict:
        choices = [self._whole_choice(i, generation) for i, generation in enumerate(generations)]
        ids = {"prompt_token_ids": self._prompt_of(0).token_ids} if self._form.return_token_ids else {}
        return self.head.envelope("chat.completion", choices, **ids, **self._prompt_logprobs(generations[0]))

    def _whole_choice(self, index: int, generation: Generation) -> dict:
        message = self._messages[index] = Message.whole(self._form.message, generation)
        choice = {
            "index": index,
            "message": self._whole_message(message),
            "logprobs": self._logprobs.chat(generation.scored) if self._wants_logprobs else None,
            "finish_reason": self._finish_reason(message, generation.finish_reason),
            "stop_reason": generation.stop_reason,
        }
        if self._form.return_token_ids:
            choice["token_ids"] = generation.token_ids
        return choice

    def _whole_message(self, message: Message) -> dict:
        content = message.content
        shape = {"role": "assistant", "content": content or (None if message.calls or message.reasoning else "")}
        shape["refusal"] = None
        if self._form.message.reasoning is not None:
            shape["reasoning"] = message.reasoning or None
        if message.calls:
            shape["tool_calls"] = [
                self._call(call.name) | {"function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
        return shape

    def _finish_reason(self, message: Message, reason: str) -> str:
        """A call that the client asked for by name is no reason of its own to OpenAI."""
        return reason if self._form.message.names_tool else message.finish_reason(reason)

    def _call(self, name: str) -> dict:
        call_id = secrets.token_hex(16)[: self._call_id_chars] if self._call_id_chars else _call_id()
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}

    def opening(self, index: int) -> dict | None:
        chunk = self._chunk([self._choice(index, {"role": "assistant", "content": ""})])
        if self._form.return_token_ids:
            chunk["prompt_token_ids"] = self._prompt_of(index).token_ids
        return chunk

    def text_alone(self, index: int, generation: Generation, delta: TextDelta) -> str | None:
        text = super().text_alone(index, generation, delta)
        return text if text is not None and self._message(index, generation).take_plain(text) else None

    def text_chunk(self, index: int, text: str) -> dict:
        return self._chunk([self._choice(index, self._delta(Content(text)))])

    def _message(self, index: int, generation: Generation) -> Message:
        message = self._messages.get(index)
        if message is None:
            message = self._messages[index] = Message(self._form.message, generation)
        return message

    def chunks(self, index: int, generation: Generation, delta: TextDelta) -> list[dict]:
        """Text first, the reason for the end in a chunk of its own."""
        message = self._message(index, generation)
        choices = [self._choice(index, self._delta(part)) for part in message.push(delta)]
        if delta.finish_reason is not None:
            end = {"finish_reason": self._finish_reason(message, delta.finish_reason), "stop_reason": delta.stop_reason}
            choices.append({**self._choice(index, {}), **end})
        elif not choices and (delta.scored or (self._form.return_token_ids and delta.token_ids)):
            choices.append(self._choice(index, {}))
        if choices and delta.scored:
            choices[0]["logprobs"] = self._logprobs.chat(delta.scored)
        if choices and self._form.return_token_ids:
            choices[0]["token_ids"] = list(delta.token_ids)
        return [self._chunk([choice]) for choice in choices]

    def _delta(self, part: Part) -> dict:
        """A part in a chunk's ``delta``: a call's id and name come once, its arguments in pieces."""
        if isinstance(part, Content):
            return {"content": part.text}
        if isinstance(part, Reasoning):
            return {"reasoning": part.text}
        if isinstance(part, CallBegin):
            return {"tool_calls": [{"index": part.index, **self._call(part.name)}]}
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}

    def usage_chunk(self, usage: dict) -> dict:
        return self._chunk([], usage=usage)

    @staticmethod
    def _choice(index: int, delta: dict) -> dict:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[dict], **more: object) -> dict:
        return self.head.envelope("chat.completion.chunk", choices, **more)


class CompletionShapes(_Shapes):
    """``text_completion``, whole and in chunks (both have the same object name). One object for each answer."""

    def __init__(self, model: str, prepared: PreparedRequest, text: TextProcessor):
        super().__init__(Head("cmpl", model), prepared, text)
        self._echoes = [text.prompt_text(prompt) if self._form.echo else "" for prompt in prepared.prompts]
        self._firsts: dict[int, Generation] = {}  # by prompt: has the prompt's log-probabilities for all n
        # An echo with log-probabilities has to wait for them.
        self._late_openings = set(range(prepared.num_sequences)) if self._form.echo and self._wants_logprobs else set()

    num_reasoning_tokens = None  # a completion is text as it comes

    def whole(self, generations: list[Generation]) -> dict:
        self._firsts = dict(enumerate(generations[:: self._n]))
        choices = [self._whole_choice(i, generation) for i, generation in enumerate(generations)]
        return self.head.envelope("text_completion", choices)

    def _whole_choice(self, index: int, generation: Generation) -> dict:
        text = self._echo(index) + generation.text
        choice = self._choice(index, text, generation.finish_reason, generation.stop_reason)
        if self._wants_logprobs:
            scored = [*self._echo_scored(index), *self._behind_echo(index, generation.scored)]
            choice["logprobs"] = self._logprobs.completion(scored)
        if self._form.return_token_ids:
            choice["prompt_token_ids"] = self._prompt_of(index).token_ids
            choice["token_ids"] = generation.token_ids
        return choice | self._prompt_logprobs(self._firsts[index // self._n])

    def opening(self, index: int) -> dict | None:
        """The prompt, where the client wants it back."""
        wanted = self._form.echo or self._form.return_token_ids
        return self._opening(index) if wanted and index not in self._late_openings else None

    def _opening(self, index: int) -> dict:
        choice = self._choice(index, self._echo(index))
        if self._form.echo and self._wants_logprobs:
            choice["logprobs"] = self._logprobs.completion(self._echo_scored(index))
        if self._form.return_token_ids:
            choice["prompt_token_ids"] = self._prompt_of(index).token_ids
        return self._chunk(choice)

    def text_chunk(self, index: int, text: str) -> dict:
        return self._chunk(self._choice(index, text))

    def chunks(self, index: int, generation: Generation, delta: TextDelta) -> list[dict]:
        """Text first, the reason for the end in a chunk of its own."""
        wants_ids = self._form.return_token_ids
        self._firsts.setdefault(index // self._n, generation)  # nobody is heard before the first of n
        opening = []
        if index in self._late_openings and (delta.token_ids or delta.finish_reason is not None):
            self._late_openings.remove(index)
            opening = [self._opening(index)]
        choices = []
        if delta.text or (delta.finish_reason is None and (delta.scored or (wants_ids and delta.token_ids))):
            choices.append(self._choice(index, delta.text))
        if delta.finish_reason is not None:
            choices.append(self._choice(index, "", delta.finish_reason, delta.stop_reason))
        if choices and delta.scored:
            choices[0]["logprobs"] = self._logprobs.completion(self._behind_echo(index, delta.scored))
        if choices and wants_ids:
            choices[0]["token_ids"] = list(delta.token_ids)
        return [*opening, *(self._chunk(choice) for choice in choices)]

    def usage_chunk(self, usage: dict) -> dict:
        return self.head.envelope("text_completion", [], usage=usage)

    def _echo(self, choice: int) -> str:
        return self._echoes[choice // self._n]

    def _echo_scored(self, choice: int) -> list[ScoredToken]:
        if not self._form.echo:
            return []
        first = self._firsts[choice // self._n]
        scores = first.prompt_token_ids, first.prompt_logprobs
        return prompt_logprobs.echoed(*scores, self._num_logprobs, self._echo(choice), self._tokenizer)

    def _behind_echo(self, choice: int, scored: Sequence[ScoredToken]) -> Sequence[ScoredToken]:
        """Offsets count the echo too."""
        shift = len(self._echo(choice))
        return [ScoredToken(e.token_id, e.offset + shift, e.logprob) for e in scored] if shift else scored

    def _chunk(self, choice: dict) -> dict:
        return self.head.envelope("text_completion", [choice])

    @staticmethod
    def _choice(index: int, text: str, finish_reason: str | None = None, stop_reason: str | int | None = None) -> dict:
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
