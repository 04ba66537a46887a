"""OpenAI's objects from given tokens: plain and streamed say the same, each field where clients look for it."""

from __future__ import annotations

import json

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion
from text_helpers import bpe_tokenizer

from pyengine.protocol import FinishReason, TokenDelta, TokenLogprob
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits
from server.openai.responses import ChatShapes, CompletionShapes

BPE = bpe_tokenizer()
TEMPLATE = "{{ tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{# <tool_call> </think> #}"
PROCESSOR = TextProcessor(
    ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens)),
    Limits(max_model_len=2048, vocab_size=BPE.vocab_size),
)
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = 'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


def answer(text: str, shapes_class: type, parse, size: int = 2, **fields: object):
    """The whole object and the chunks of an answer that says ``text`` and ends."""
    prepared = parse(json.dumps(fields).encode())
    shapes, streamed = (shapes_class("m", prepared, PROCESSOR) for _ in range(2))
    (generation,) = PROCESSOR.generations(prepared.prompts[0], prepared.form)
    ids = BPE.encode(text, False)
    deltas = [
        TokenDelta("r", 0, ids[i : i + size], logprobs=scores(ids[i : i + size])) for i in range(0, len(ids), size)
    ]
    deltas.append(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1, logprobs=scores([1])))
    opening = streamed.opening(0)
    chunks = [] if opening is None else [opening]
    for delta in deltas:
        chunks += streamed.chunks(0, generation, generation.push(delta))
    whole = shapes.whole([generation])
    assert streamed.num_reasoning_tokens == shapes.num_reasoning_tokens
    for each in (whole, *chunks):
        assert json.loads(msgspec.json.encode(each)) == each
    return whole, chunks, shapes


def scores(ids: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(-i / 100, 1, [i, 7], [-i / 100, -9.0]) for i in ids]


def chat(text: str, **fields: object):
    return answer(text, ChatShapes, PROCESSOR.chat, messages=[{"role": "user", "content": "hi"}], **fields)


def completion(text: str, **fields: object):
    return answer(text, CompletionShapes, PROCESSOR.completion, prompt="hello", **fields)


def test_chat():
    whole, chunks, _ = chat("Yes, it is")
    (choice,) = ChatCompletion.model_validate(whole).choices
    assert (choice.message.content, choice.finish_reason) == ("Yes, it is", "stop")
    assert choice.logprobs is None and choice.message.tool_calls is None
    assert "token_ids" not in whole["choices"][0] and "prompt_token_ids" not in whole
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {} and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Yes, it is"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_calls(size):
    whole, chunks, _ = answer(
        CALL, ChatShapes, PROCESSOR.chat, size, messages=[{"role": "user", "content": "hi"}], tools=[TOOL]
    )
    (choice,) = ChatCompletion.model_validate(whole).choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    (call,) = choice.message.tool_calls
    assert call.id.startswith("call_") and json.loads(call.function.arguments) == {"city": "Bern"}
    deltas = [each.choices[0].delta for each in map(ChatCompletionChunk.model_validate, chunks)]
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    head, *rest = pieces
    assert (head.index, head.type, head.function.name, head.function.arguments) == (0, "function", "weather", "")
    assert head.id.startswith("call_") and rest and all(piece.id is piece.function.name is None for piece in rest)
    assert "".join(piece.function.arguments for piece in rest) == call.function.arguments
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_alone_has_no_content():
    whole, _, _ = chat('<tool_call>{"name": "weather"}</tool_call>', tools=[TOOL])
    assert whole["choices"][0]["message"]["content"] is None
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert chat(CALL)[0]["choices"][0]["message"]["content"] == CALL  # nobody offered a tool


def test_thinking_is_a_field():
    whole, chunks, shapes = chat("<think>\nhm\n</think>\n\nYes")
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes",
        "refusal": None,
        "reasoning": "hm",
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"
    assert 0 < shapes.num_reasoning_tokens < len(BPE.encode("<think>\nhm\n</think>\n\nYes", False))


def test_logprobs_of_chat():
    whole, chunks, _ = chat("Yes, it is", logprobs=True, top_logprobs=2)
    entries = ChatCompletion.model_validate(whole).choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == "Yes, it is"
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole["choices"][0]["logprobs"]["content"]


def test_logprobs_of_completions():
    whole, chunks, _ = completion("Yes, it is", logprobs=1)
    logprobs = Completion.model_validate(whole | {"usage": None}).choices[0].logprobs
    assert "".join(logprobs.tokens) == "Yes, it is" and len(logprobs.top_logprobs[0]) == 2
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [item for chunk in chunks for item in (chunk["choices"][0]["logprobs"] or {name: []})[name]]
        assert streamed == whole["choices"][0]["logprobs"][name]


def test_token_ids():
    ids = [*BPE.encode("Yes, it is", False), 1]
    whole, chunks, _ = chat("Yes, it is", return_token_ids=True, logprobs=True)
    assert whole["choices"][0]["token_ids"] == ids and len(whole["choices"][0]["logprobs"]["content"]) == len(ids)
    assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"] == BPE.encode("None[user]hi", False)
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])] == ids
    whole, chunks, _ = completion("Yes, it is", return_token_ids=True, return_tokens_as_token_ids=True, logprobs=0)
    assert whole["choices"][0]["token_ids"] == ids
    assert whole["choices"][0]["prompt_token_ids"] == chunks[0]["choices"][0]["prompt_token_ids"] == BPE.encode("hello")
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])] == ids
    assert whole["choices"][0]["logprobs"]["tokens"] == [f"token_id:{i}" for i in ids]


def test_echo():
    whole, chunks, _ = completion(" world", echo=True)
    assert whole["choices"][0]["text"] == "hello world"
    assert chunks[0]["choices"][0]["text"] == "hello"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello world"
