"""How much a model is to think, and whether its thinking is told."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.text.answer_parts import Reasoning
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.message import Message
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
BODY = "{{ messages[0].content }}{% if add_generation_prompt %}[go]{% endif %}"
LEVELS = BODY + "{{ reasoning_effort or 'usual' }}{# </think> #}"
SWITCH = BODY + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
THINKS = BODY + "{# </think> #}"


def chat(template: str, **fields: object):
    text = ModelText(BPE, ChatTemplate(template, BPE.facts.named_tokens))
    processor = TextProcessor(text, Limits(max_model_len=512, vocab_size=BPE.vocab_size))
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return processor, processor.chat(json.dumps(body).encode())


def prompt(template: str, **fields: object) -> str:
    return chat(template, **fields)[1].prompts[0].text


@pytest.mark.parametrize(
    ("template", "effort", "expected"),
    [
        (LEVELS, None, "hi[go]usual"),
        (LEVELS, "high", "hi[go]high"),
        (LEVELS, "none", "hi[go]none"),
        (SWITCH, None, "hi[go]"),
        (SWITCH, "medium", "hi[go]"),
        (SWITCH, "none", "hi[go]<think></think>"),
        (THINKS, "medium", "hi[go]"),
        (BODY, "none", "hi[go]"),
    ],
)
def test_levels_that_work(template, effort, expected):
    assert prompt(template, reasoning_effort=effort) == expected


@pytest.mark.parametrize(
    ("template", "effort", "works"),
    [(SWITCH, "low", "none, medium"), (THINKS, "none", "medium"), (BODY, "medium", "none"), (BODY, "max", "none")],
)
def test_levels_without_effect_are_refused(template, effort, works):
    with pytest.raises(RequestError) as caught:
        prompt(template, reasoning_effort=effort)
    assert caught.value.param == "reasoning_effort" and f"(has: {works})" in caught.value.message


def test_other_endpoints_say_it_in_their_own_words():
    for template, body, expected in (
        (SWITCH, {"thinking": {"type": "disabled"}}, "hi[go]<think></think>"),
        (SWITCH, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, "hi[go]"),
        (BODY, {"thinking": {"type": "disabled"}}, "hi[go]"),
        (LEVELS, {"output_config": {"effort": "low"}}, "hi[go]low"),
    ):
        processor, _ = chat(template)
        messages = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        assert processor.anthropic(json.dumps(messages | body).encode()).prompts[0].text == expected
    processor, _ = chat(LEVELS)
    _, request = processor.responses(b'{"input": "hi", "reasoning": {"effort": "high"}}')
    assert request.prompts[0].text == "hi[go]high"
    with pytest.raises(RequestError, match=r"^reasoning\.effort high has no effect") as caught:
        chat(THINKS)[0].responses(b'{"input": "hi", "reasoning": {"effort": "high"}}')
    assert caught.value.param == "reasoning.effort"


def test_variables_given_by_name_win():
    assert prompt(LEVELS, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "own"}) == "hi[go]own"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_thinking_may_be_left_out(size):
    said = {}
    for shown in (True, False):
        processor, request = chat(THINKS, include_reasoning=shown)
        (generation,) = processor.generations(request.prompts[0], request.form)
        message = Message(request.form.message, generation)
        ids, parts = BPE.encode("<think>so so</think>Yes.", False), []
        for start in range(0, len(ids), size):
            parts += message.push(generation.push(TokenDelta("r", 0, ids[start : start + size])))
        parts += message.push(generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1)))
        assert (message.content, message.reasoning) == ("Yes.", "so so" if shown else "")
        assert any(isinstance(part, Reasoning) for part in parts) == shown and message.num_reasoning_tokens > 0
        said[shown] = message.num_reasoning_tokens
    assert said[True] == said[False]
