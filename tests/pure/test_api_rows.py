"""Every row of docs/api.md's tables, exercised: a supported field does not only parse but reaches the checks, a refused
one is the documented 400, an ignored one changes nothing. A new row needs an example here.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_api_document import names, rows
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.text import anthropic, fields, responses
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{{a}}{# <tool_call> </think> #}")
LIMITS = Limits(max_model_len=4096, vocab_size=BPE.vocab_size, hidden_size=64)
TEXT = TextProcessor(ModelText(BPE, TEMPLATE), LIMITS, ["served"], splits_reasoning=True)
USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}}
CHAT_TOOL = {"type": "function", "function": {"name": "a", "parameters": SCHEMA}}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "a"}}

# Field: (values that are taken, values that are refused). An object with more than one key sets other fields as well.
COMMON = {
    "model": (["served"], ["other", 5]),
    "temperature": ([0, 0.7, 100], [-0.1, 100.1, "hot"]),
    "top_p": ([0.1, 1], [0, 1.1]),
    "top_k": ([-1, 0, 50, 3.0], [-2, 1.5]),
    "min_p": ([0, 1], [-0.1, 1.1]),
    "seed": ([0, -(2**63), 2**63 - 1], [2**63, 0.5]),
    "max_tokens": ([1, 10**6, {"max_tokens": 0, "prompt_logprobs": 0}], [0, -1, 10**400]),
    "min_tokens": ([0, 3], [-1, 2**24 + 1]),
    "stop": (["x", ["x"] * 16], ["", ["x"] * 17, 5]),
    "stop_token_ids": ([[], [5]], [[-1], [BPE.vocab_size], [1] * 129, "5"]),
    "n": ([1, 128], [0, 129]),
    "ignore_eos": ([True], [1]),
    "include_stop_str_in_output": ([True], ["yes"]),
    "skip_special_tokens": ([False], [0]),
    "spaces_between_special_tokens": ([True, False], [0]),
    "presence_penalty": ([-2, 2], [-2.1, 2.1]),
    "frequency_penalty": ([-2, 2], [-2.1, 2.1]),
    "repetition_penalty": ([0.001, 10], [0, 10.1]),
    "logit_bias": ([{}, {"5": -100, "6": 100}], [{"5": 101}, {"x": 1}, {str(BPE.vocab_size): 1}, 5]),
    "bad_words": ([[], ["x"] * 256], [[""], ["x"] * 257, "x"]),
    "prompt_logprobs": ([0, 20], [-1, 21, {"prompt_logprobs": 1, "stream": True}]),
    "allowed_token_ids": ([[5]], [[], [-1], [BPE.vocab_size]]),
    "add_special_tokens": ([True, False], [1]),
    "truncate_prompt_tokens": ([-1, 1, 4095], [0, -2, 4096]),
    "return_token_ids": ([True], [1]),
    "return_tokens_as_token_ids": ([True], ["x"]),
    "stream": ([True, False], [1]),
    "stream_options": ([{"stream_options": {"include_usage": True}, "stream": True}], [{"include_usage": True}, 5]),
    "response_format": ([{"type": "text"}, {"type": "json_object"}, JSON_FORMAT], [{"type": "xml"}, {}, 5]),
    "structured_outputs": (
        [{"json": SCHEMA}, {"json_object": True}, {"regex": "a+"}, {"choice": ["a"]}, {"grammar": 'start: "a"'}],
        [{}, {"regex": "("}, {"choice": []}, {"json": SCHEMA, "regex": "a"}],
    ),
    "priority": ([0, -(2**31), 2**31 - 1], [2**31, 0.5]),
    "cache_salt": (["x" * 128], ["x" * 129, 5]),
}
CHAT = {
    "messages": (
        [[USER], [{"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}]}]],
        [[], "hi", [{"role": "robot", "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]],
    ),
    "max_completion_tokens": ([1, 10**6], [0]),
    "logprobs": ([True, False], [5]),
    "top_logprobs": ([{"top_logprobs": 20, "logprobs": True}, 0], [{"top_logprobs": 21, "logprobs": True}, 5]),
    "tools": ([[CHAT_TOOL]], [[], [5], [{"type": "search"}], [CHAT_TOOL] * 257]),
    "tool_choice": (
        ["none", *({"tool_choice": choice, "tools": [CHAT_TOOL]} for choice in ("auto", "required", NAMED))],
        ["auto", {"tool_choice": "always", "tools": [CHAT_TOOL]}],
    ),
    "parallel_tool_calls": ([False], [0]),
    "add_generation_prompt": ([True, False], [1]),
    "continue_final_message": ([True], [{"continue_final_message": True, "add_generation_prompt": True}, 1]),
    "chat_template_kwargs": ([{"a": 1}, {"a": None}], [{"a": []}, {"b": 1}, 5]),
    "reasoning_effort": (["medium"], ["none", "high", "very", 5]),
    "include_reasoning": ([True, False], [1]),
    "thinking_token_budget": ([-1, 0, 1000], [-2, 2**24 + 1, 0.5]),
}
COMPLETION = {
    "prompt": (
        ["a", ["a", "b"], [5], [[5], [6]], [5.0, 6], [[5], [6.0]]],
        ["", [], [5, "a"], [5.0, "a"], [[5.0], 6], [5.5], 5, [BPE.vocab_size]],
    ),
    "logprobs": ([0, 20], [21, -1]),
    "echo": ([True, {"echo": True, "logprobs": 1}, {"echo": True, "max_tokens": 0}], [1]),
}
EMBEDDING = {
    "input": COMPLETION["prompt"],
    "model": COMMON["model"],
    "encoding_format": (["float", "base64"], ["int8", 5]),
    "dimensions": ([1, 64], [0, 65, 0.5]),
    "pooling": (["mean", "last"], ["max", 5]),
    "truncate_prompt_tokens": COMMON["truncate_prompt_tokens"],
    "add_special_tokens": COMMON["add_special_tokens"],
    "priority": COMMON["priority"],
    "cache_salt": COMMON["cache_salt"],
}
TOKENIZE = {
    "model": COMMON["model"],
    "prompt": (["a"], [{"prompt": "a", "messages": [USER]}, 5]),
    "messages": ([{"prompt": None, "messages": [USER]}], [{"prompt": None, "messages": []}]),
    "add_special_tokens": ([True, False], [1]),
    "return_token_strs": ([True], [1]),
    **{
        name: ([{"prompt": None, "messages": [USER], name: value}], [{"prompt": "a", name: value}])
        for name, value in (
            ("add_generation_prompt", True),
            ("continue_final_message", True),
            ("tools", [CHAT_TOOL]),
            ("chat_template_kwargs", {"a": 1}),
        )
    },
}
DETOKENIZE = {"model": COMMON["model"], "tokens": ([[], [5]], [[-1], [BPE.vocab_size], 5])}
TOOL = {"name": "a", "input_schema": SCHEMA}
COUNT = {
    "model": COMMON["model"],
    "messages": (
        [[USER], [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]],
        [[], [{"role": "system", "content": "a"}], [{"role": "user", "content": [{"type": "image"}]}]],
    ),
    "system": (["a", [{"type": "text", "text": "a"}]], [5]),
    "tools": ([[TOOL]], [[{"type": "bash", "name": "a"}], 5]),
    "tool_choice": (
        [
            {"tool_choice": choice, "tools": [TOOL]}
            for choice in ({"type": "auto"}, {"type": "none"}, {"type": "any"}, {"type": "tool", "name": "a"})
        ],
        [{"type": "any"}, {"tool_choice": {"type": "x"}, "tools": [TOOL]}],
    ),
    "thinking": (
        [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}],
        [
            {},
            {"type": "wat"},
            {"type": "enabled", "wat": 1},
            {"type": "enabled", "budget_tokens": 0},
            {"type": "adaptive", "budget_tokens": 9},
            5,
        ],
    ),
    "output_config": (
        [{"format": {"type": "json_schema", "schema": SCHEMA}}, {"effort": "medium"}],
        [{"effort": "low"}, {"effort": 5}, {"format": {}}],
    ),
}
MESSAGES = {
    **COUNT,
    "max_tokens": ([1, 10**6], [0, None]),
    "stop_sequences": ([["x"]], [[""], ["x"] * 17]),
    "stream": ([True], [1]),
    "temperature": COMMON["temperature"],
    "top_p": COMMON["top_p"],
    "top_k": COMMON["top_k"],
}
COUNT_ALONE = {
    **COUNT,
    "cache_control": ([{"type": "ephemeral"}], []),
    "user_profile_id": (["a"], []),
    "workspace_id": (["a"], []),
    "speed": (["standard"], ["fast"]),
}
RESPONSES = {
    "model": COMMON["model"],
    "input": (["a", [USER]], [[], 5, [{"type": "computer_call"}]]),
    "instructions": (["a"], [5]),
    "max_output_tokens": ([1, 10**6], [0]),
    "temperature": COMMON["temperature"],
    "top_p": COMMON["top_p"],
    "stream": ([True], [1]),
    "text": (
        [{"format": {"type": "json_schema", "schema": SCHEMA}}, {"format": {"type": "text"}, "verbosity": "medium"}],
        [{"format": 5}, {"verbosity": "low"}],
    ),
    "tools": ([[{"type": "function", "name": "a"}]], [[{"type": "web_search"}]]),
    "tool_choice": (
        [{"tool_choice": "required", "tools": [{"type": "function", "name": "a"}]}, "auto"],
        ["required", {"tool_choice": "always", "tools": [{"type": "function", "name": "a"}]}],
    ),
    "parallel_tool_calls": ([False], [0]),
    "reasoning": (
        [{}, {"effort": "medium"}, {"effort": None, "summary": None}],
        [{"effort": "high"}, {"effort": "very"}, {"effort": []}, {"summary": "auto"}, {"wat": 1}, 5],
    ),
    "metadata": ([{}, {"topic": "sea"}], [5, ["a"]]),
}
BASES = {
    "chat": {"messages": [USER]},
    "completion": {"prompt": "a"},
    "tokenize": {"prompt": "a"},
    "detokenize": {"tokens": [5]},
    "embeddings": {"input": "a"},
    "anthropic": {"messages": [USER], "max_tokens": 4},
    "anthropic_count": {"messages": [USER]},
    "responses": {"input": "a"},
}
TABLES = [
    ("chat", "Fields of both endpoints", COMMON),
    ("completion", "Fields of both endpoints", COMMON),
    ("chat", "Fields of chat alone", CHAT),
    ("completion", "Fields of completions alone", COMPLETION),
    ("tokenize", "Fields of /tokenize", TOKENIZE),
    ("detokenize", "Fields of /detokenize", DETOKENIZE),
    ("embeddings", "Fields of /v1/embeddings", EMBEDDING),
    ("anthropic", "Fields of /v1/messages", MESSAGES),
    ("anthropic_count", "Fields of /v1/messages/count_tokens", COUNT_ALONE),
    ("responses", "Fields of /v1/responses", RESPONSES),
]
SUPPORTED = [(endpoint, name, examples) for endpoint, heading, examples in TABLES for name in names(heading)]


def prepare(endpoint: str, body: dict) -> object:
    return getattr(TEXT, endpoint)(json.dumps(body).encode())


def with_field(endpoint: str, name: str, value: object) -> dict:
    """The endpoint's smallest body with the field; a dictionary that has the field's own name sets several."""
    return {**BASES[endpoint], **(value if isinstance(value, dict) and name in value else {name: value})}


@pytest.mark.parametrize(("endpoint", "name", "examples"), SUPPORTED, ids=[f"{e}-{n}" for e, n, _ in SUPPORTED])
def test_a_supported_field_is_taken_and_checked(endpoint, name, examples):
    taken, refused = examples[name]
    for value in (*taken, None) if name not in BASES[endpoint] else taken:
        prepare(endpoint, with_field(endpoint, name, value))
    for value in refused:
        with pytest.raises(RequestError) as caught:
            prepare(endpoint, with_field(endpoint, name, value))
        error = caught.value
        assert name in f"{error.param} {error.message}" and error.status in (400, 404), (value, error.param, str(error))


REFUSED = [
    *(("chat", name, fields.NOT_YET[fields.ChatRequest][name], " yet") for name in fields.NOT_YET[fields.ChatRequest]),
    *(
        ("completion", name, neutral, " yet")
        for name, neutral in fields.NOT_YET[fields.CompletionRequest].items()
    ),
    *(("anthropic", name, neutral, "") for name, neutral in anthropic.REFUSED.items()),
    *(("responses", name, neutral, "") for name, neutral in responses.REFUSED.items()),
]


@pytest.mark.parametrize(("endpoint", "name", "neutral", "yet"), REFUSED, ids=[f"{e}-{n}" for e, n, *_ in REFUSED])
def test_a_refused_field_is_the_documented_400_unless_it_asks_for_nothing(endpoint, name, neutral, yet):
    for value in (*neutral, None):
        prepare(endpoint, with_field(endpoint, name, value))
    for value in ("something", 7, ["x"], {"a": 1}):
        with pytest.raises(RequestError, match=f"{name} is not supported{yet} \\(got ") as caught:
            prepare(endpoint, {**BASES[endpoint], name: value})
        assert (caught.value.param, caught.value.status) == (name, 400)


IGNORED = [
    *((endpoint, name) for endpoint in ("chat", "completion") for name in names("Accepted without effect")),
    *(
        (endpoint, name)
        for endpoint in ("tokenize", "detokenize", "embeddings")
        for name in names("Accepted without effect")
    ),
    *(("anthropic", name) for name in names("Accepted without effect by /v1/messages")),
    *(("responses", name) for name in names("Accepted without effect by /v1/responses")),
]


@pytest.mark.parametrize(("endpoint", "name"), IGNORED)
def test_an_ignored_field_changes_nothing(endpoint, name):
    def shown(body: dict) -> str:
        prepared = prepare(endpoint, body)
        asked = prepared if not isinstance(prepared, tuple) else prepared[-1]
        if hasattr(asked, "prompts"):  # a seed is drawn for each
            asked = replace(asked, prompts=tuple((each.token_ids, each.params.max_tokens) for each in asked.prompts))
        return repr(asked)

    plain = shown(BASES[endpoint])
    for value in ("x", 5, True, {"a": 1}, [1], None):
        assert shown({**BASES[endpoint], name: value}) == plain


def test_every_table_is_exercised():
    """A table of fields that these tests do not know is a table without tests."""
    from test_api_document import TEXT as document

    known = {heading for _, heading, _ in TABLES} | {
        "Known and refused",
        "Accepted without effect",
        *(f"Refused by /v1/{name}" for name in ("messages", "responses")),
        *(f"Accepted without effect by /v1/{name}" for name in ("messages", "responses")),
    }
    headings = [line.removeprefix("### ") for line in document.splitlines() if line.startswith("### ")]
    assert {heading for heading in headings if "|---" in document.split(f"### {heading}\n")[1].split("\n#")[0]} == known
    assert all(rows(heading) for heading in known)
