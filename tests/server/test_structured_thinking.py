"""Structured answers of a model that thinks first, through OpenAI's client: the template teaches it to."""

from __future__ import annotations

import json

import openai
import pytest
from running_server import RunningServer

MODEL = "smollm2-135m"
TEMPLATE = (
    "{# <think> </think> #}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if thinking is defined and not thinking %}<think>\n\n</think>\n\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer", "maximum": 99}},
    "required": ["total"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}


def history() -> list[dict]:
    messages = []
    for n in (1, 2, 3):
        thought = f"<think>\nIt is a small sum. {n} plus {n} is {2 * n}.\n</think>\n"
        messages += [
            {"role": "user", "content": f"What is {n} plus {n}?"},
            {"role": "assistant", "content": f'{thought}{{"answer": {2 * n}}}'},
        ]
    return [*messages, {"role": "user", "content": "What is 4 plus 4?"}]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TEMPLATE)
    with RunningServer("--chat-template", str(template)) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)


ARGUMENTS = {"model": MODEL, "messages": history(), "temperature": 0, "max_tokens": 80}


def test_it_thinks_and_then_answers_in_form_plain_and_streamed(thinker):
    free = thinker.chat.completions.create(**ARGUMENTS).choices[0].message
    answer = thinker.chat.completions.create(**ARGUMENTS, response_format=FORM)
    message = answer.choices[0].message
    assert message.reasoning == free.reasoning and "small sum" in message.reasoning
    assert set(json.loads(message.content)) == {"total"} and set(json.loads(free.content)) == {"answer"}
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    chunks = [chunk.choices[0].delta for chunk in thinker.chat.completions.create(
        **ARGUMENTS, response_format=FORM, stream=True
    )]  # fmt: skip
    assert "".join(delta.content or "" for delta in chunks) == message.content
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in chunks) == message.reasoning


def test_a_choice_behind_thinking(thinker):
    body = {"structured_outputs": {"choice": ["even", "odd"]}}
    message = thinker.chat.completions.create(**ARGUMENTS, extra_body=body).choices[0].message
    assert message.content in ("even", "odd") and message.reasoning


def test_a_budget_ends_the_thinking_plain_and_streamed(thinker):
    free = thinker.chat.completions.create(**ARGUMENTS).choices[0].message.reasoning
    for form in ({}, {"response_format": FORM}):
        asked = {**ARGUMENTS, **form, "extra_body": {"thinking_token_budget": 6}}
        answer = thinker.chat.completions.create(**asked)
        message = answer.choices[0].message
        assert free.startswith(message.reasoning) and 0 < len(message.reasoning) < len(free)
        assert answer.choices[0].finish_reason == "stop"  # a free answer may be none at all: this is a small model
        assert not form or set(json.loads(message.content)) == {"total"}
        chunks = [chunk.choices[0].delta for chunk in thinker.chat.completions.create(**asked, stream=True)]
        assert "".join(delta.content or "" for delta in chunks) == (message.content or "")
        assert "".join(getattr(delta, "reasoning", None) or "" for delta in chunks) == message.reasoning


def test_a_prompt_that_has_ended_the_thinking_is_bound_at_once(thinker):
    body = {"chat_template_kwargs": {"thinking": False}}
    message = thinker.chat.completions.create(**ARGUMENTS, response_format=FORM, extra_body=body).choices[0].message
    assert message.reasoning is None and set(json.loads(message.content)) == {"total"}


def test_completions_are_text_as_it_comes(thinker):
    answer = thinker.completions.create(
        model=MODEL, prompt="4 is", max_tokens=8, extra_body={"structured_outputs": {"choice": ["even", "odd"]}}
    )
    assert answer.choices[0].text in ("even", "odd")
