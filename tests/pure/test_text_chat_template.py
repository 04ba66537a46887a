"""Chat templates: transformers' rendering, both content forms, what a hostile or careless template may not do."""

from __future__ import annotations

import re
import time

import pytest
from text_helpers import bpe_tokenizer, write_bpe_folder

from pyengine.errors import ModelError, RequestError
from pyengine.text import template_sandbox
from pyengine.text.chat_template import ChatTemplate, self_check

BPE = bpe_tokenizer()

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{'<|start|>' + message['role'] + '\n' + message['content'] + "
    "'<|end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# Pieces of what real templates do: namespaces, macros, loop controls, filters, tools, dates, white-space control.
RICH = """
{%- set ns = namespace(system='none', last=-1) %}
{%- macro show(text) %}[{{ text | trim }}]{% endmacro %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0]['content'] %}{% set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}{{ show(ns.system) }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- generation %}
    {{- '\n' ~ loop.index ~ '/' ~ loop.length ~ ' ' ~ message.role | upper ~ ': ' }}
    {{- message.content | replace('a', 'aa') }}
    {%- endgeneration %}
    {%- if loop.index > 8 %}{% break %}{% endif %}
{%- else %}nobody{% endfor %}
{%- if tools is not none %}{{ tools | tojson(indent=2) }}{{ tools | map(attribute='name') | join(', ') }}{% endif %}
{%- for key, value in {'b': 1, 'a': [true, none]}.items() | sort %} {{ key }}={{ value | tojson }}{% endfor %}
{%- if 'x' in undefined_thing | default('xyz') %}
    {{- '%s-%03d' % ('f', 7) }} {{ '{:>4}'.format('r') }} {{ "a,b".split(',')[-1] }}
{%- endif %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{% if add_generation_prompt %}ASSISTANT:{% endif %}
"""
CONVERSATION = [
    {"role": "system", "content": ' You <are> "it" & a cat\'s friend. '},
    {"role": "user", "content": "Hi {{ x }} {% y %} ü"},
    {"role": "assistant", "content": "Hello\n"},
    {"role": "user", "content": "日本 ok?"},
]


@pytest.mark.parametrize(
    ("source", "extra"),
    [(CHATML, {}), (RICH, {}), (RICH, {"enable_thinking": False})],
    ids=["chatml", "rich", "rich-enable_thinking"],
)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(tmp_path, source, add_generation_prompt, extra):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(write_bpe_folder(tmp_path / "m", chat_template=source))
    named = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    template = ChatTemplate(source, named)
    for tools in (None, [{"name": "f", "q": "<ü'>"}]):
        expected = theirs.apply_chat_template(
            CONVERSATION, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **extra
        )
        assert template.render(CONVERSATION, add_generation_prompt, tools, extra) == expected


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


PARTS_ONLY = "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c['text'] }}|{% endfor %}{% endif %}{% endfor %}"
)


def test_content_reaches_templates_in_the_form_they_expect():
    text, listed = [{"role": "user", "content": "ab"}], [{"role": "user", "content": parts("a", "b")}]
    strings = ChatTemplate(CHATML)
    assert (strings.accepts_string, strings.accepts_parts) == (True, False)
    assert "user\na\nb<|end|>" in strings.render(listed) and "user\nab<|end|>" in strings.render(text)
    only = ChatTemplate(PARTS_ONLY)
    assert (only.accepts_string, only.accepts_parts) == (False, True)
    assert only.render(text) == only.render(listed) == "<user>ab"
    either = ChatTemplate(EITHER)
    assert (either.accepts_string, either.accepts_parts) == (True, True)
    assert either.render(text) == "<user>ab" and either.render(listed) == "<user>a|b|"


def test_developer_is_system_where_the_template_does_not_know_it():
    message = [{"role": "developer", "content": "be brief"}]
    assert "<|start|>system\nbe brief" in ChatTemplate(CHATML).render(message)
    knows = "{% for m in messages %}{% if m.role in ['developer'] %}D{% endif %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(knows).render(message) == "Dbe brief"


@pytest.mark.parametrize(
    ("messages", "param", "text"),
    [
        ([], "messages", "at least one message"),
        ("hi", "messages", "must be a list"),
        ([1], "messages[0]", "must be an object"),
        ([{"content": "x"}], "messages[0].role", "role must be one of"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "got 'robot'"),
        ([{"role": "function", "content": "x"}], "messages[0].role", "function messages are not supported yet"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "is missing"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "messages[0].tool_calls", "unknown field"),
        ([{"role": "user"}], "messages[0].content", "must be a string, got NoneType"),
        ([{"role": "user", "content": 5}], "messages[0].content", "must be a string, got int"),
        ([{"role": "user", "content": "x", "extra": 1}], "messages[0].extra", "unknown field 'extra'"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function", "must be an object"),
        ([{"role": "assistant", "function_call": {"a": 1}}], "messages[0].function_call", "not supported yet"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content", "lone surrogate"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages[0].content[0].type",
            "parts of type 'image_url' are not supported, only text",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "must be a string"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "must be an object"),
    ],
)
def test_wrong_messages_name_the_field(messages, param, text):
    with pytest.raises(RequestError, match=re.escape(text)) as caught:
        ChatTemplate(CHATML).render(messages)
    assert caught.value.param == param and caught.value.status == 400


def test_an_echoed_assistant_message_is_taken():
    echoed = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "audio": None,
    }
    rendered = ChatTemplate(CHATML).render([{"role": "user", "content": "a", "name": "Ann"}, echoed])
    assert "assistant\n<|end|>" in rendered


def test_errors_of_a_template_are_the_requests():
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate"):
        ChatTemplate(RICH).render([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(RequestError, match="ZeroDivisionError"):
        ChatTemplate("{{ 1 // (messages|length - 1) }}").render([{"role": "user", "content": "a"}])
    with pytest.raises(RequestError, match=r"no variable 'enable_think' \(it has: enable_thinking, undefined_thing"):
        ChatTemplate(RICH).render([{"role": "user", "content": "a"}], variables={"enable_think": True})
    with pytest.raises(RequestError, match="chat_template_kwargs cannot set bos_token"):
        ChatTemplate(CHATML, {"bos_token": "<s>"}).render(
            [{"role": "user", "content": "a"}], variables={"bos_token": "x"}
        )
    with pytest.raises(RequestError, match="cannot set documents"):
        ChatTemplate(CHATML).render([{"role": "user", "content": "a"}], variables={"documents": []})


def test_a_template_that_is_none_is_a_model_error():
    for source in ("{% for %}", "{{", "{% include 'x' %}{% endfor %}", "{{ " + "(" * 50_000):
        with pytest.raises(ModelError, match="chat template"):
            ChatTemplate(source)


DOUBLING = "{% set n = namespace(s=START) %}{% for i in range(64) %}STEP{% endfor %}"


def doubling(step: str, start: str = "'aa'") -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a filter": "{% for a in range(9999) %}{% for b in range(9999)|map('abs') %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "exponential macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for a in [messages] recursive %}{{ loop([a]) }}{% endfor %}",
    "multiplied string": "{{ 'a' * 10000000000 }}",
    "multiplied list": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** 10000000 }}",
    "power of a power": "{{ (2 ** 4096) ** 4096 }}",
    "format width": "{{ '%10000000000d' % 1 }}",
    "computed width": "{{ '%*d' % (1000000000, 1) }}",
    "str.format width": "{{ '{:10000000000}'.format(1) }}",
    "nested str.format": "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "indent": "{{ ('a\n' * 1000) | indent(1000000) }}",
    "doubling by ~": doubling("{% set n.s = n.s ~ n.s %}"),
    "doubling by +": doubling("{% set n.s = n.s + n.s %}"),
    "doubling by lists": doubling("{% set n.s = n.s + n.s %}", "[1]"),
    "doubling by join": doubling("{% set n.s = [n.s, n.s] | join %}"),
    "doubling by replace": doubling("{% set n.s = n.s | replace('a', 'aa') %}"),
    "doubling by method": doubling("{% set n.s = n.s.replace('a', 'aa') %}"),
    "doubling by block": doubling("{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}"),
    "printed nesting": "{{ [['a' * 10000000] * 1000] * 1000 }}",
    "nesting as text": "{{ ([['a' * 10000000] * 1000] * 1000) | string | length }}",
    "nesting as JSON": "{{ ([['a' * 10000000] * 1000] * 1000) | tojson | length }}",
    "output": "{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}",
    "output into a block": "{% set x %}{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}{% endset %}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "namespace internals": "{% set n = namespace(__class__=1) %}",
    "changing a list": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update(role='x') }}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_are_refused(case, monkeypatch):
    """Each within seconds and without the memory it asks for; what leads into Python is at best undefined."""
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.5)
    messages = [{"role": "user", "content": "a"}]
    start = time.perf_counter()
    try:
        rendered = ChatTemplate(HOSTILE[case]).render(messages)
    except (ModelError, RequestError):
        rendered = None
    assert rendered is None or (rendered == "" and case in ("attr filter", "function globals"))
    assert time.perf_counter() - start < 20
    assert messages == [{"role": "user", "content": "a"}]


def test_a_long_conversation_is_within_the_limits():
    messages = [{"role": role, "content": "word " * 200} for role in ("user", "assistant")] * 4000
    assert len(ChatTemplate(CHATML, {"bos_token": ""}).render(messages)) > 8_000_000


def check(source: str) -> list[str]:
    return self_check(ChatTemplate(source, BPE.facts.named_tokens), BPE)


def test_self_check_finds_what_is_odd():
    good = CHATML.replace("{{ bos_token }}", "")
    assert check(good) == []
    assert (
        check(
            EITHER.replace("<{{ m.role }}>", "<|start|>{{ m.role }} ").replace(
                "{% endif %}{% endfor %}", "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}go{% endif %}"
            )
        )
        == []
    )
    assert check(CHATML) == ["the chat template begins with the BOS token twice"]
    assert check(good.replace("messages %}", "messages[1:] %}")) == [
        "the chat template drops a user message",
        "the chat template drops the system message",
    ]
    assert check(good.replace("<|end|>", "")) == [
        "the chat template ends no assistant message with an end-of-sequence token: answers may run on"
    ]
    assert check(good.partition("{% if add_gen")[0]) == [
        "the chat template adds no generation prompt: answers may continue the question"
    ]
    assert check(good.replace("<|start|>", "<<")) == [
        "the chat template does not begin with the BOS token that this tokenizer puts before texts"
    ]
    assert check("{{ raise_exception('never') }}") == [
        "the chat template fails on a plain conversation of user, assistant, user"
    ]
    skips_system = good.replace("{{'<|start|>'", "{% if m == 1 or message.role != 'system' %}{{'<|start|>'", 1).replace(
        "}}{% endfor %}", "}}{% endif %}{% endfor %}"
    )
    assert check(skips_system) == ["the chat template drops the system message"]


def test_inst_style_templates_need_no_generation_prompt():
    source = (
        "<|start|>{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|end|>{% else %}"
        "[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    )
    assert check(source) == []
