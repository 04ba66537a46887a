"""Scores of prompts in the shapes of clients: plain and streamed the same, offsets into the text that is returned."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.protocol import FinishReason, TokenDelta, TokenLogprob
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits
from server.openai.responses import ChatShapes, CompletionShapes

BPE = bpe_tokenizer()
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PROCESSOR = TextProcessor(
    ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens)),
    Limits(max_model_len=256, vocab_size=BPE.vocab_size),
)
ANSWER = " it is é"


def score(token_id: int) -> TokenLogprob:
    return TokenLogprob(-token_id / 100, 3, [token_id, 7], [-token_id / 100, -9.0])


def deltas_of(prompt: list[int], max_tokens: int, n: int) -> list[TokenDelta]:
    """As an engine sends them: the prompt's scores in pieces at the first sequence, then tokens in turn."""
    scores = [score(i) for i in prompt[1:]]
    out = [TokenDelta("r", 0, [], prompt_logprobs=scores[i : i + 3]) for i in range(0, len(scores), 3)]
    if not max_tokens:
        return out + [TokenDelta("r", i, [], FinishReason.LENGTH) for i in range(n)]
    ids = BPE.encode(ANSWER, False)
    out += [TokenDelta("r", i, [token], logprobs=[score(token)]) for token in ids for i in range(n)]
    return out + [TokenDelta("r", i, [1], FinishReason.STOP, 1, logprobs=[score(1)]) for i in range(n)]


def answer(shapes_class: type, parse, **fields: object):
    prepared = parse(json.dumps(fields).encode())
    (prompt,) = prepared.prompts
    generations = PROCESSOR.generations(prompt, prepared.form)
    shapes, streamed = (shapes_class("m", prepared, PROCESSOR) for _ in range(2))
    chunks = [chunk for i in range(len(generations)) if (chunk := streamed.opening(i)) is not None]
    for delta in deltas_of(prompt.token_ids, prompt.params.max_tokens, prompt.params.n):
        generation = generations[delta.index]
        chunks += streamed.chunks(delta.index, generation, generation.push(delta))
    return shapes.whole(generations), chunks, prompt


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("max_tokens", [0, 50])
@pytest.mark.parametrize("prompt", ["The sea 日本", BPE.encode("The sea"), "x"])
def test_an_echo_has_the_scores_of_its_prompt(prompt, max_tokens, n):
    whole, chunks, prepared = answer(
        CompletionShapes, PROCESSOR.completion, prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, n=n
    )
    text = PROCESSOR.prompt_text(prepared)
    for index, choice in enumerate(whole["choices"]):
        logprobs = choice["logprobs"]
        count = len(prepared.token_ids)
        assert choice["text"] == text + (ANSWER if max_tokens else "")
        assert choice["finish_reason"] == ("stop" if max_tokens else "length")
        assert logprobs["token_logprobs"][:count] == [None, *(score(i).logprob for i in prepared.token_ids[1:])]
        assert logprobs["top_logprobs"][0] is None and all(len(top) == 1 for top in logprobs["top_logprobs"][1:count])
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            if token.isascii() and token not in ("<|start|>", "<|end|>"):
                assert choice["text"][offset:].startswith(token)
        assert (len(logprobs["tokens"]) > count) is bool(max_tokens)
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(chunk["text"] for chunk in mine) == choice["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for chunk in mine for item in (chunk["logprobs"] or {name: []})[name]] == logprobs[name]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_prompt_logprobs_by_id(count):
    fields = {"prompt_logprobs": count, "max_tokens": 0}
    whole, _, prompt = answer(CompletionShapes, PROCESSOR.completion, prompt="The sea", n=2, **fields)
    first, *rest = whole["choices"][0]["prompt_logprobs"]
    assert first is None and len(rest) == len(prompt.token_ids) - 1
    for token_id, entries in zip(prompt.token_ids[1:], rest, strict=True):
        text = BPE.id_to_bytes(token_id).decode()
        assert next(iter(entries)) == str(token_id) and len(entries) == max(count, 1)
        rank = 1 if count else 3
        assert entries[str(token_id)] == {"logprob": -token_id / 100, "rank": rank, "decoded_token": text}
    assert whole["choices"][1]["prompt_logprobs"] == whole["choices"][0]["prompt_logprobs"]
    assert whole["choices"][0]["logprobs"] is None
    messages = [{"role": "user", "content": "hi"}]
    chat, _, prompt = answer(ChatShapes, PROCESSOR.chat, messages=messages, **fields)
    assert len(chat["prompt_logprobs"]) == len(prompt.token_ids) and chat["choices"][0]["message"]["content"] == ""


def test_nobody_asked():
    whole, _, _ = answer(CompletionShapes, PROCESSOR.completion, prompt="The sea", echo=True, max_tokens=0)
    assert "prompt_logprobs" not in whole["choices"][0] and whole["choices"][0]["text"] == "The sea"
