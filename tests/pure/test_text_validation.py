"""The one validator: every field of both endpoints, every limit, and no input that raises anything but RequestError."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import bpe_tokenizer

from pyengine.errors import ConfigError, ModelError, RequestError
from pyengine.protocol import decode_to_engine, encode
from pyengine.sampling_params import SamplingParams
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.fields import IGNORED, NOT_YET, ChatRequest, CompletionRequest
from pyengine.text.hf_folder import read_sampling_defaults
from pyengine.text.json_body import parse_object
from pyengine.text.processor import ModelText, TextProcessor, load_model_text
from pyengine.text.validation import Limits
from server.config import ServerConfig

BPE = bpe_tokenizer()
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}<|start|>assistant\n{{ flag }}"
)
LIMITS = Limits(max_model_len=64, vocab_size=BPE.vocab_size, max_body_bytes=20_000, max_prompts=4, max_sequences=6)


def make(defaults: dict | None = None, **limits: int) -> TextProcessor:
    text = ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens), defaults or {})
    return TextProcessor(text, dataclasses.replace(LIMITS, **limits), ["served", "alias"])


PROCESSOR = make()


def completion(**fields: object):
    return PROCESSOR.completion(json.dumps({"prompt": "hello", **fields}).encode())


def chat(**fields: object):
    return PROCESSOR.chat(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())


# ---- what is taken ---------------------------------------------------------------------------------------------------


def test_every_field_arrives():
    fields = {
        "model": "alias",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": -3,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "n": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "priority": -1,
        "cache_salt": "s",
    }
    expected = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=-3,
        max_tokens=9,
        min_tokens=2,
        stop=("a", "b"),
        stop_token_ids=(3,),
        n=2,
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )
    for request in (completion(**fields), chat(**fields)):
        assert request.prompts[0].params == expected
        assert request.stream and request.include_usage and not request.continuous_usage
        assert (request.priority, request.cache_salt, request.num_sequences) == (-1, "s", 2)
        wire = request.to_requests(["r"], arrival_s=1.5)[0]
        assert decode_to_engine(encode(wire)) == wire
        assert wire.eos_token_ids == [1] and wire.prompt_token_ids == request.prompts[0].token_ids


def test_defaults():
    request = completion()
    params = request.prompts[0].params
    assert (params.max_tokens, params.temperature, params.n) == (16, 1.0, 1)
    assert not request.stream and request.prompts[0].text == "hello"
    room = 64 - len(chat().prompts[0].token_ids)
    assert chat().prompts[0].params.max_tokens == room
    assert completion(max_tokens=None, stop=None, temperature=None, model=None).prompts[0].params.max_tokens == 16
    assert completion().prompts[0].params.seed != params.seed  # drawn per request


def test_generation_config_is_the_default_and_clients_win():
    processor = make({"temperature": 0.6, "top_k": 20})
    params = processor.completion(b'{"prompt":"a"}').prompts[0].params
    assert (params.temperature, params.top_k) == (0.6, 20)
    params = processor.completion(b'{"prompt":"a","temperature":0}').prompts[0].params
    assert (params.temperature, params.top_k) == (0.0, 20)
    assert processor.default_sampling_params() == SamplingParams(temperature=0.6, top_k=20)


def test_every_field_that_generation_config_may_set(tmp_path):
    given = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.05}
    others = {"do_sample": True, "max_length": 20, "max_new_tokens": 9, "pad_token_id": 3, "transformers_version": "5"}
    (tmp_path / "generation_config.json").write_text(json.dumps(given | others))
    assert read_sampling_defaults(tmp_path) == given | {"max_tokens": 9}
    (tmp_path / "generation_config.json").write_text('{"temperature": null, "top_k": 20.0}')
    assert read_sampling_defaults(tmp_path) == {"top_k": 20}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"top_k": 1.5}', "top_k must be an integer, got 1.5"),
        ('{"max_new_tokens": true}', "max_new_tokens must be an integer"),
        ('{"max_new_tokens": 0}', "max_new_tokens must be 1 or more"),
        ('{"temperature": "hot"}', "temperature must be a number, got 'hot'"),
    ],
)
def test_a_generation_config_that_makes_no_sense_is_named_at_the_start(tmp_path, text, problem):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=problem):
        read_sampling_defaults(tmp_path)


def test_max_new_tokens_bounds_every_answer():
    processor = make({"max_tokens": 9, "repetition_penalty": 1.05})
    for fields, expected in (({}, 9), ({"max_tokens": 5}, 5), ({"max_tokens": 12}, 9)):
        params = processor.completion(json.dumps({"prompt": "a", **fields}).encode()).prompts[0].params
        assert (params.max_tokens, params.repetition_penalty) == (expected, 1.05)
    messages = {"messages": [{"role": "user", "content": "a"}]}
    for fields, expected in (({}, 9), ({"max_completion_tokens": 12}, 9), ({"max_completion_tokens": 2}, 2)):
        params = processor.chat(json.dumps({**messages, **fields}).encode()).prompts[0].params
        assert params.max_tokens == expected


def test_limits_that_an_operator_lowers():
    lowered = make(max_n=2, max_stops=1, max_logit_bias=1)
    lowered.completion(json.dumps({"prompt": "a", "n": 2, "stop": "x", "logit_bias": {"5": 1}}).encode())
    for field, value, text in (
        ("n", 3, "n must be in [1, 2], got 3"),
        ("stop", ["x", "y"], "stop may have at most 1 entries, got 2"),
        ("logit_bias", {"5": 1, "6": 1}, "logit_bias may have at most 1 entries, got 2"),
    ):
        with pytest.raises(RequestError) as caught:
            lowered.completion(json.dumps({"prompt": "a", field: value}).encode())
        assert (caught.value.param, caught.value.message) == (field, text)
    for name in ("max_n", "max_stops", "max_logit_bias"):
        with pytest.raises(ConfigError, match=name.replace("_", "-") + " may be at most"):
            ServerConfig(**{name: 1 << 20})
        with pytest.raises(ConfigError, match="must be at least 1"):
            ServerConfig(**{name: 0})


def test_output_length_is_clamped_never_refused():
    for value in (1000, 10**9, 10**30):
        request = completion(max_tokens=value)
        assert request.prompts[0].params.max_tokens == 64 - request.num_prompt_tokens
    assert chat(max_tokens=5, max_completion_tokens=3).prompts[0].params.max_tokens == 3
    assert chat(max_completion_tokens=10**9).prompts[0].params.max_tokens > 5
    request = PROCESSOR.completion(json.dumps({"prompt": [5] * 60, "max_tokens": 50, "min_tokens": 40}).encode())
    assert (request.prompts[0].params.max_tokens, request.prompts[0].params.min_tokens) == (4, 4)


def test_four_forms_of_prompt():
    ids = BPE.encode("hello")
    assert [p.token_ids for p in completion(prompt="hello").prompts] == [ids]
    assert [p.token_ids for p in completion(prompt=["hello", "hello"]).prompts] == [ids, ids]
    assert [p.token_ids for p in completion(prompt=[5, 6]).prompts] == [[5, 6]]
    assert [p.token_ids for p in completion(prompt=[[5], [6, 7]]).prompts] == [[5], [6, 7]]
    assert completion(prompt="hello", add_special_tokens=False).prompts[0].token_ids == ids[1:]
    assert completion(prompt=[5]).prompts[0].text is None


def test_chat_uses_the_template_and_adds_no_second_bos():
    request = chat(chat_template_kwargs={"flag": "X"})
    assert request.prompts[0].text == "<|start|>user\nhi<|end|><|start|>assistant\nX"
    assert request.prompts[0].token_ids == BPE.encode(request.prompts[0].text, add_special_tokens=False)
    assert request.prompts[0].token_ids[0] == 0 and request.prompts[0].token_ids[1] != 0
    assert chat(add_special_tokens=True).prompts[0].token_ids[:2] == [0, 0]


@pytest.mark.parametrize("endpoint", [completion, chat])
def test_fields_without_meaning_are_ignored(endpoint):
    for name in IGNORED:
        assert endpoint(**{name: {"any": ["thing"]}}).prompts


@pytest.mark.parametrize(("endpoint", "struct"), [(completion, CompletionRequest), (chat, ChatRequest)])
def test_fields_not_supported_yet(endpoint, struct):
    for name, neutral in NOT_YET[struct].items():
        for value in (None, *neutral):
            assert endpoint(**{name: value}).prompts, name
        with pytest.raises(RequestError, match=f"{name} is not supported yet") as caught:
            endpoint(**{name: "something else"})
        assert caught.value.param == name and caught.value.status == 400


def test_false_is_not_zero():
    with pytest.raises(RequestError):
        completion(presence_penalty=False)
    with pytest.raises(RequestError):
        chat(logprobs=0)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"bogus": 1}, "bogus", "unknown field 'bogus'"),
        ({"bogus": None}, "bogus", "unknown field 'bogus'"),
        ({"temperature": "hot"}, "temperature", "temperature: Expected `float"),
        ({"temperature": True}, "temperature", "got `bool`"),
        ({"temperature": -0.1}, "temperature", "must be in [0, 100]"),
        ({"top_p": 0}, "top_p", "must be in (0, 1]"),
        ({"top_k": 1.5}, "top_k", "Expected `int"),
        ({"min_p": 1.01}, "min_p", "must be in [0, 1]"),
        ({"seed": 1 << 63}, "seed", "seed must be in"),
        ({"n": 0}, "n", "n must be in [1, 128]"),
        ({"n": 10**400}, "n", "n must be in [1, 128]"),
        ({"n": 7}, "n", "prompts times n may be at most 6, got 1 x 7 = 7"),
        ({"max_tokens": 0}, "max_tokens", "must be in [1"),
        ({"max_tokens": -5}, "max_tokens", "got -5"),
        ({"min_tokens": -1}, "min_tokens", "must be in [0"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "must be in [0, 5], got 6"),
        ({"stop": ""}, "stop", "non-empty"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 entries, got 17"),
        ({"stop": "x" * 1025}, "stop", "at most 1024 characters, got 1025"),
        ({"stop": [["a"]]}, "stop[0]", "Expected `str`"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "must be in [0"),
        ({"stop_token_ids": [BPE.vocab_size]}, "stop_token_ids", f"outside [0, {BPE.vocab_size})"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"stream": "yes"}, "stream", "Expected `bool`"),
        ({"stream": True, "stream_options": {"bogus": 1}}, "stream_options.bogus", "unknown field 'bogus'"),
        ({"priority": 1 << 40}, "priority", "priority must be in"),
        ({"cache_salt": "x" * 129}, "cache_salt", "at most 128 characters, got 129"),
        ({"cache_salt": 5}, "cache_salt", "Expected `str`"),
    ],
)
@pytest.mark.parametrize("endpoint", [completion, chat])
def test_wrong_values_name_field_value_and_range(endpoint, fields, param, text):
    with pytest.raises(RequestError) as caught:
        endpoint(**fields)
    assert caught.value.status == 400 and caught.value.param == param
    assert text in caught.value.message and len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([[]], "prompt is empty"),
        (["a", ""], "prompt is empty"),
        ([1, "a"], "not a mixture"),
        ([[1], "a"], "not a mixture"),
        ([True], "not a mixture"),
        ([1.5], "not a mixture"),
        ([[[1]]], "not a mixture"),
        (5, "Expected `str | array`"),
        ({"a": 1}, "Expected `str | array`"),
        ([-1], "token id -1 is outside"),
        ([BPE.vocab_size], f"token id {BPE.vocab_size} is outside [0, {BPE.vocab_size})"),
        ([2**31], "outside"),
        ([10**300], "outside"),
        ([5] * 64, "the prompt has 64 tokens, but prompt and output together may have 64 (--max-model-len)"),
        (["a"] * 5, "at most 4 prompts are allowed in one request, got 5"),
    ],
)
def test_wrong_prompts(prompt, text):
    with pytest.raises(RequestError) as caught:
        completion(prompt=prompt)
    assert text in caught.value.message and caught.value.param == "prompt"


def test_a_prompt_may_fill_all_but_one_token():
    assert completion(prompt=[5] * 63).prompts[0].params.max_tokens == 1


def test_tokens_of_all_prompts_are_bounded():
    with pytest.raises(RequestError, match="the prompts of one request may have 10 tokens together"):
        make(max_prompt_tokens=10).completion(b'{"prompt":[[5,5,5,5,5,5],[5,5,5,5,5]]}')


def test_unknown_model_is_404_with_the_served_names():
    with pytest.raises(
        RequestError, match="The model `gpt-9` does not exist; this server has `served`, `alias`"
    ) as caught:
        completion(model="gpt-9")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_required_fields_are_named():
    for body, field in ((b"{}", "prompt"), (b'{"prompt":null}', "prompt")):
        with pytest.raises(RequestError, match=f"missing required field `{field}`") as caught:
            PROCESSOR.completion(body)
        assert caught.value.param == field
    with pytest.raises(RequestError, match="missing required field `messages`"):
        PROCESSOR.chat(b"{}")


def test_max_completion_tokens_is_named_by_its_own_name():
    with pytest.raises(RequestError, match="max_completion_tokens must be in") as caught:
        chat(max_completion_tokens=0)
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"messages": 1},
        {"add_generation_prompt": False},
        {"tools": None},
        {"bos_token": "x"},
        {"a": {"nested": 1}},
        {"a": [1]},
        [1],
    ],
    ids=str,
)
def test_template_kwargs_are_scalars_and_override_nothing(kwargs):
    with pytest.raises(RequestError) as caught:
        chat(chat_template_kwargs=kwargs)
    assert caught.value.param.startswith("chat_template_kwargs")


def test_without_a_chat_template():
    processor = TextProcessor(ModelText(BPE), LIMITS)
    assert processor.completion(b'{"prompt":"a"}').prompts
    with pytest.raises(RequestError, match="this model has no chat template; use /v1/completions"):
        processor.chat(b'{"messages":[{"role":"user","content":"a"}]}')


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object, got an array"),
        (b"null", "must be a JSON object, got null"),
        (b'"x"', "must be a JSON object, got a string"),
        (b'{"prompt":"a","temperature":NaN}', "not valid JSON"),
        (b'{"prompt":"a","temperature":Infinity}', "not valid JSON"),
        (b'{"prompt":"a","temperature":1e999}', "out of range"),
        (b'{"prompt":"a","n":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"prompt":"a","metadata":{"a":[1' + b"0" * 400 + b"]}}", "out of range"),
        (b'{"prompt":"a","logit_bias":{"5":-1' + b"0" * 400 + b"}}", "logit_bias: a number is out of range"),
        (b'{"prompt":"\\ud83d"}', "not valid JSON"),
        (b'{"prompt":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"prompt":"a"} {}', "not valid JSON"),
        (b'{"prompt":' + b"[" * 9000 + b"}", "nested too deeply"),
        (b'{"user":' + b"[" * 70 + b"]" * 70 + b',"prompt":"a"}', "nested deeper than 64 levels"),
    ],
)
def test_broken_bodies(body, text):
    with pytest.raises(RequestError, match=text) as caught:
        PROCESSOR.completion(body)
    assert caught.value.status == 400


def test_body_size():
    with pytest.raises(RequestError, match="has 20013 bytes, the limit is 20000") as caught:
        PROCESSOR.completion(b'{"prompt":"' + b"a" * 20_000 + b'"}')
    assert caught.value.status == 413


def test_of_a_repeated_key_the_last_counts_and_is_checked():
    assert PROCESSOR.completion(b'{"prompt":"a","n":99,"n":2}').prompts[0].params.n == 2
    with pytest.raises(RequestError, match="prompts times n"):
        PROCESSOR.completion(b'{"prompt":"a","n":2,"n":99}')


# ---- the offline door ------------------------------------------------------------------------------------------------


def test_offline_prompts():
    params = SamplingParams(max_tokens=5, seed=1)
    ids = BPE.encode("hello")
    for prompt in ("hello", {"prompt": "hello"}, ids, {"prompt_token_ids": ids}, tuple(ids)):
        prepared = PROCESSOR.prepare_offline(prompt, params)
        assert (prepared.token_ids, prepared.params) == (ids, params)
    for wrong in (
        ["a"],
        [["a"]],
        [[5]],
        [[5], [6]],
        {"x": 1},
        {"prompt": "a", "prompt_token_ids": [1]},
        5,
        None,
        [],
        "",
    ):
        if wrong == [[5]]:
            continue
        with pytest.raises(RequestError):
            PROCESSOR.prepare_offline(wrong, params)
    with pytest.raises(RequestError, match="stop_token_ids"):
        PROCESSOR.prepare_offline("a", SamplingParams(stop_token_ids=[10**6]))
    with pytest.raises(RequestError, match="prompts times n"):
        PROCESSOR.prepare_offline("a", SamplingParams(n=100))
    messages = [{"role": "user", "content": "hi"}]
    assert PROCESSOR.prepare_messages(messages, params).token_ids == chat().prompts[0].token_ids
    assert [generation.index for generation in PROCESSOR.generations(completion(n=3).prompts[0])] == [0, 1, 2]


def test_random_weights_need_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has neither"):
        load_model_text(tmp_path)
    text = load_model_text(tmp_path, random_weights=True)
    processor = TextProcessor(text, Limits(max_model_len=64, vocab_size=1000))
    prompt = processor.completion(b'{"prompt":"h\\u00fc"}').prompts[0]
    assert prompt.token_ids == [104, 195, 188] and processor.eos_token_ids == ()
    assert text.tokenizer.decode([104, 195, 188, 999]) == "hü<999>"


# ---- fuzz ------------------------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, "", "\x00", "\ud800", 1e308, [], {}, [[]], [0], ["a"]]),
)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
NAMES = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *NOT_YET[ChatRequest], *IGNORED})
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "name", "type", "text"]), JSON | st.just("user"), max_size=4
)


def never_anything_else(call, body: bytes) -> None:
    try:
        request = call(body)
    except RequestError as error:
        assert 400 <= error.status < 500 and error.message
        error.message.encode("utf-8")
        return
    for prompt in request.prompts:
        assert prompt.token_ids and all(0 <= i < LIMITS.vocab_size for i in prompt.token_ids)
        assert 1 <= prompt.params.max_tokens <= LIMITS.max_model_len - len(prompt.token_ids)
    encode(request.to_requests([str(i) for i in range(len(request.prompts))])[0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(fields=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), messages=st.lists(MESSAGE, max_size=3))
def test_random_fields_never_raise_anything_but_request_error(fields, messages):
    prompt = {"prompt": fields.get("prompt", "a")}
    never_anything_else(PROCESSOR.completion, json.dumps({**fields, **prompt}).encode())
    never_anything_else(PROCESSOR.chat, json.dumps({"messages": messages, **fields}).encode())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_random_bytes(body):
    never_anything_else(PROCESSOR.completion, body)
    never_anything_else(PROCESSOR.chat, b'{"messages":[' + body + b"]}")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cut=st.integers(0, 200), flip=st.integers(0, 200), byte=st.integers(0, 255))
def test_damaged_bodies(cut, flip, byte):
    content = '[{"type":"text","text":"hi ü"}]'
    body = bytearray(
        f'{{"messages":[{{"role":"user","content":{content}}}],"n":2,"stop":["\\n"],"top_p":0.5}}'.encode()
    )
    body[flip % len(body)] = byte
    never_anything_else(PROCESSOR.chat, bytes(body))
    never_anything_else(PROCESSOR.chat, bytes(body[:cut]))


def test_offline_conversations_are_checked_as_over_http():
    messages, params = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}], SamplingParams()

    def ids(*args: object, **variables: object) -> list[int]:
        return PROCESSOR.prepare_messages(messages, params, *args, **variables).token_ids

    def over_http(**fields: object) -> list[int]:
        return chat(messages=messages, **fields).prompts[0].token_ids

    assert ids(None, None, None, True) == over_http(continue_final_message=True)
    assert ids(None, None, False) == over_http(add_generation_prompt=False)
    assert ids(None, None, True) == over_http() == ids()
    with pytest.raises(RequestError, match="cannot both be true"):
        ids(None, None, True, True)
    for tools in ([{"type": "nonsense"}], 5):
        with pytest.raises(RequestError, match="tools"):
            ids(tools)
    with pytest.raises(RequestError, match="flag must be a boolean, number, string or null, got list"):
        ids(flag=[{"a": 1}])


def test_digits_in_a_text_are_no_number():
    assert completion(user="7" * 400, metadata={"a": 10**300}).prompts
    body = json.dumps({"user": ("7" * 308 + " ") * 20_000}).encode()
    begin = time.monotonic()
    assert parse_object(body, len(body)) and time.monotonic() - begin < 1.0


def test_a_truncated_prompt_is_echoed_as_it_was_kept():
    whole, cut = completion(prompt="one two three"), completion(prompt="one two three", truncate_prompt_tokens=2)
    assert PROCESSOR.prompt_text(whole.prompts[0]) == "one two three"
    kept = cut.prompts[0]
    assert len(kept.token_ids) == 2 and PROCESSOR.prompt_text(kept) == PROCESSOR.tokenizer.decode(kept.token_ids)


def test_structured_output_is_a_parameter_offline():
    choice = {"choice": ["yes", "no"]}
    over_http = completion(structured_outputs=choice).prompts[0].params
    params = SamplingParams(structured_outputs=choice, max_tokens=16, seed=over_http.seed)
    offline = PROCESSOR.prepare_offline("a", params)
    assert offline.params == over_http and over_http.grammar and over_http.structured_outputs is None
    assert PROCESSOR.check_params(SamplingParams(response_format={"type": "json_object"})).grammar
    assert PROCESSOR.check_params(SamplingParams(response_format={"type": "text"})) == SamplingParams()
    for wrong, message in (
        ({"structured_outputs": {"wat": 1}}, "structured_outputs has no field 'wat'"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex cannot be used"),
        ({"structured_outputs": choice, "response_format": {"type": "json_object"}}, "not both"),
        ({"structured_outputs": choice, "grammar": over_http.grammar}, "grammar is given beside"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            PROCESSOR.prepare_offline("a", SamplingParams(**wrong))
