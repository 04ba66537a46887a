"""Unknown fields at every depth: refused by name, or left out and listed."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.unknown_fields import MAX_NOTED, MORE, ignoring
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
TEMPLATE = ChatTemplate("{% for m in messages %}{{ m }}{% endfor %}{{ tools }}{# <tool_call> #}", {})
TEXT = TextProcessor(ModelText(BPE, TEMPLATE), Limits(max_model_len=4096, vocab_size=BPE.vocab_size))
TOOL = {"type": "function", "function": {"name": "a", "wat": 1}}
CHAT = {
    "messages": [{"role": "user", "wat": 1, "content": [{"type": "text", "text": "hi", "wat": 1}]}],
    "tools": [TOOL],
    "stream": True,
    "stream_options": {"wat": 1},
    "response_format": {"type": "json_schema", "wat": 1, "json_schema": {"schema": {}, "wat": 1}},
    "wat": 1,
}
CHAT_PATHS = [
    "wat",
    "messages[0].wat",
    "messages[0].content[0].wat",
    "tools[0].function.wat",
    "stream_options.wat",
    "response_format.wat",
    "response_format.json_schema.wat",
]
MESSAGES = {
    "max_tokens": 3,
    "wat": 1,
    "messages": [{"role": "user", "wat": 1, "content": [{"type": "text", "text": "hi", "wat": 1}]}],
    "tools": [{"name": "a", "input_schema": {}, "wat": 1}],
    "tool_choice": {"type": "auto", "wat": 1},
}
RESPONSES = {"input": [{"role": "user", "content": "hi", "wat": 1}], "wat": 1}


def without_wat(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_wat(item) for key, item in value.items() if key != "wat"}
    return [without_wat(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("endpoint", "body", "paths"),
    [
        ("chat", CHAT, CHAT_PATHS),
        ("completion", {"prompt": "a", "structured_outputs": {"choice": ["a"], "wat": 1}}, ["structured_outputs.wat"]),
        ("anthropic", MESSAGES, "wat messages[0].wat messages[0].content[0].wat tools[0].wat tool_choice.wat".split()),
        ("anthropic_count", {"messages": MESSAGES["messages"][:1], "wat": 1}, None),
        ("responses", RESPONSES, ["wat", "input[0].wat"]),
        ("tokenize", {"prompt": "a", "wat": 1}, ["wat"]),
        ("detokenize", {"tokens": [5], "wat": 1}, ["wat"]),
    ],
)
def test_ignored_fields_change_nothing_and_are_listed(endpoint, body, paths):
    prepare = getattr(TEXT, endpoint)
    with pytest.raises(RequestError, match="wat"):
        prepare(json.dumps(body).encode())
    with ignoring() as names:
        lenient = prepare(json.dumps(body).encode())
    if paths is not None:
        assert sorted(names) == sorted(paths)
    plain = prepare(json.dumps(without_wat(body)).encode())
    if endpoint in ("chat", "completion", "anthropic"):
        assert lenient.prompts[0].token_ids == plain.prompts[0].token_ids
        assert lenient.prompts[0].params.grammar == plain.prompts[0].params.grammar


def test_refused_fields_and_wrong_values_stay_errors():
    for fields in ({"best_of": 3}, {"temperature": -1}, {"stop": 5}):
        with ignoring(), pytest.raises(RequestError, match=next(iter(fields))):
            TEXT.completion(json.dumps({"prompt": "a", **fields}).encode())


def test_the_list_is_bounded_and_ends_with_its_block():
    body = json.dumps({"prompt": "a", **{f"wat{i}" * 100: 1 for i in range(1000)}}).encode()
    with ignoring() as names:
        TEXT.completion(body)
    assert len(names) == MAX_NOTED + 1 and names[-1] == MORE and max(map(len, names)) <= 200
    with pytest.raises(RequestError):
        TEXT.completion(body)
