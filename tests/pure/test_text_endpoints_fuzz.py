"""No body makes an endpoint's text side raise anything but RequestError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}{# <tool_call> </think> #}"
)
PROCESSOR = TextProcessor(
    ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens)), Limits(max_model_len=512, vocab_size=BPE.vocab_size)
)
WORDS = (
    "type function name arguments role content text user assistant tool tool_use tool_result tool_call_id tool_calls "
    "tool_use_id id input input_schema parameters strict required auto none any message function_call output call_id "
    'function_call_output reasoning thinking input_text $defs properties {} {"a":1} weather system'.split()
)
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 700),
    st.floats(allow_nan=False),
    st.sampled_from(WORDS),
    st.sampled_from(["", "\x00", "é", 10**400, -(2**63), 1e308]),
)
KEYS = st.sampled_from(WORDS)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
FUNCTION = st.fixed_dictionaries({"name": st.sampled_from(["weather", "time", 5])}, optional={"parameters": JSON})
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}) | JSON
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": JSON},
    optional={"tool_calls": JSON, "tool_call_id": JSON, "reasoning": JSON},
)
FIELDS = {
    "prompt": JSON,
    "tokens": JSON,
    "input": JSON | st.lists(MESSAGE | JSON, max_size=3),
    "messages": st.lists(MESSAGE, max_size=3) | JSON,
    "tools": st.lists(TOOL, min_size=1, max_size=2) | JSON,
    "tool_choice": st.sampled_from(["required", "auto", {"type": "any"}, {"type": "tool", "name": "weather"}]) | JSON,
    "system": JSON,
    "text": JSON,
    "store": JSON,
    "max_tokens": LEAF,
    "logit_bias": JSON,
    "truncate_prompt_tokens": LEAF,
    "continue_final_message": st.booleans(),
}
TAKES = {
    "chat": ("messages", "tools", "tool_choice", "logit_bias", "truncate_prompt_tokens", "continue_final_message"),
    "anthropic": ("messages", "tools", "tool_choice", "system", "max_tokens"),
    "anthropic_count": ("messages", "tools", "tool_choice", "system"),
    "responses": ("input", "tools", "tool_choice", "text", "store"),
    "tokenize": ("messages", "tools", "prompt", "continue_final_message"),
    "detokenize": ("tokens",),
}


@pytest.mark.parametrize("endpoint", TAKES)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_only_request_errors(endpoint, data):
    body = data.draw(st.fixed_dictionaries({}, optional={name: FIELDS[name] for name in TAKES[endpoint]}))
    try:
        getattr(PROCESSOR, endpoint)(json.dumps(body).encode())
    except RequestError as error:
        assert 400 <= error.status < 500 and error.message
        error.message.encode("utf-8")
