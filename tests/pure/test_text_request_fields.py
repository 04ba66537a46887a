"""What becomes of a request's fields: choices of tokens, log-probabilities, echo, truncation, continuation."""

from __future__ import annotations

import dataclasses
import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.fields import CompletionRequest
from pyengine.text.json_body import shape
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import AnswerForm, Limits

BPE = bpe_tokenizer()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROCESSOR = TextProcessor(
    ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens)), Limits(max_model_len=64, vocab_size=BPE.vocab_size)
)


def completion(**fields: object):
    return PROCESSOR.completion(json.dumps({"prompt": "hello", **fields}).encode())


def chat(**fields: object):
    return PROCESSOR.chat(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())


@pytest.mark.parametrize("endpoint", [completion, chat])
def test_choices_of_tokens_arrive(endpoint):
    params = (
        endpoint(
            presence_penalty=0.5,
            frequency_penalty=-2,
            repetition_penalty=1.1,
            logit_bias={"5": -100, "007": 1.5},
            allowed_token_ids=[3, 4],
        )
        .prompts[0]
        .params
    )
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, -2, 1.1)
    assert params.logit_bias == {5: -100, 7: 1.5} and params.allowed_token_ids == (3, 4)
    assert endpoint(logit_bias={}).prompts[0].params.logit_bias is None


@pytest.mark.parametrize("endpoint", [completion, chat])
@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty", "must be in [-2, 2], got 2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty", "must be in [-2, 2], got -3"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must be in [0.001, 10], got 0"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "the key 'x'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "the key '-1'"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "the key '999"),
        ({"logit_bias": {"٣": 1}}, "logit_bias", "the key"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "must be in [-100, 100], got 101"),
        ({"logit_bias": {"5": "a"}}, "logit_bias[...]", "Expected `float"),
        ({"logit_bias": {str(BPE.vocab_size): 1}}, "logit_bias", f"outside [0, {BPE.vocab_size})"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024 entries"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "no token could be drawn"),
        ({"allowed_token_ids": [BPE.vocab_size]}, "allowed_token_ids", f"outside [0, {BPE.vocab_size})"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids", "must be in [0"),
        ({"bad_words": [""]}, "bad_words", "must be non-empty strings, got ''"),
        ({"bad_words": "x"}, "bad_words", "Expected `array"),
        ({"bad_words": ["x"] * 257}, "bad_words", "at most 256 entries, got 257"),
        ({"bad_words": ["x" * 257]}, "bad_words", "at most 256 characters, got 257"),
        ({"bad_words": ["ab" * 50]}, "bad_words", "must have 1 to 32 tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "must be in [0, 20], got 21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "must be in [0, 20], got -1"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "not allowed with stream: true"),
        ({"max_tokens": 0}, "max_tokens", "must be in [1, 16777216], got 0"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be -1 or in [1, 63], got 0"),
        ({"truncate_prompt_tokens": 64}, "truncate_prompt_tokens", "got 64"),
        ({"truncation_side": "right"}, "truncation_side", "not supported yet"),
    ],
)
def test_wrong_values_are_named(endpoint, fields, param, text):
    with pytest.raises(RequestError) as caught:
        endpoint(**fields)
    assert (caught.value.status, caught.value.param) == (400, param) and text in caught.value.message


def test_logprobs_of_chat():
    assert chat().prompts[0].params.logprobs is None
    assert chat(logprobs=False, top_logprobs=0).prompts[0].params.logprobs is None
    assert chat(logprobs=True).prompts[0].params.logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).prompts[0].params.logprobs == 20
    for fields, param, text in (
        ({"top_logprobs": 2}, "top_logprobs", "only allowed with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "in [0, 20], got 21"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "in [0, 20], got -1"),
        ({"logprobs": 3}, "logprobs", "Expected `bool`"),
    ):
        with pytest.raises(RequestError) as caught:
            chat(**fields)
        assert caught.value.param == param and text in caught.value.message


def test_logprobs_of_completions():
    assert completion(logprobs=0).prompts[0].params.logprobs == 0
    assert completion(logprobs=20).prompts[0].params.logprobs == 20
    for value in (21, -1, True, "5"):
        with pytest.raises(RequestError) as caught:
            completion(logprobs=value)
        assert caught.value.param == "logprobs"
    with pytest.raises(RequestError, match="unknown field 'top_logprobs'"):
        completion(top_logprobs=2)


def test_prompt_logprobs():
    for endpoint in (completion, chat):
        assert endpoint().prompts[0].params.prompt_logprobs is None and endpoint().form.prompt_logprobs is None
        asked = endpoint(prompt_logprobs=0, max_tokens=0)
        assert asked.prompts[0].params.prompt_logprobs == asked.form.prompt_logprobs == 0
        assert asked.prompts[0].params.max_tokens == 0
    echoed = completion(echo=True, logprobs=3, stream=True)
    assert echoed.prompts[0].params.prompt_logprobs == 3 and echoed.form.prompt_logprobs is None
    both = completion(echo=True, logprobs=3, prompt_logprobs=5)
    assert both.prompts[0].params.prompt_logprobs == 5 == both.form.prompt_logprobs
    assert completion(echo=True, prompt_logprobs=2).prompts[0].params.logprobs is None


def test_scores_of_prompts_are_bounded():
    limits = dataclasses.replace(PROCESSOR.limits, max_prompt_scores=240)
    processor = TextProcessor(PROCESSOR.text, limits)

    def ask(**fields: object):
        return processor.completion(json.dumps({"prompt": [[5] * 20] * 2, **fields}).encode())

    assert len(ask(prompt_logprobs=5).prompts) == 2 and ask(prompt_logprobs=1, n=3) and ask(logprobs=20)
    for fields in ({"prompt_logprobs": 6}, {"prompt_logprobs": 1, "n": 4}, {"echo": True, "logprobs": 6}):
        with pytest.raises(RequestError, match="240 log-probabilities of prompts, got 40 tokens") as caught:
            ask(**fields)
        assert caught.value.param == "prompt_logprobs"


def test_a_prompt_alone_may_fill_the_context():
    full = list(range(5, 69))
    assert completion(prompt=full, echo=True, max_tokens=0).prompts[0].params.max_tokens == 0
    for fields in ({"max_tokens": 1}, {"echo": True}):
        with pytest.raises(RequestError, match="the prompt has 64 tokens"):
            completion(prompt=full, **fields)


def test_form():
    assert completion().form == chat().form == AnswerForm()
    asked = completion(echo=True, return_token_ids=True, return_tokens_as_token_ids=True).form
    assert asked == AnswerForm(echo=True, return_token_ids=True, tokens_as_ids=True)
    with pytest.raises(RequestError, match="echo is not supported yet"):
        chat(echo=True)
    assert PROCESSOR.prompt_text(completion().prompts[0]) == "hello"
    assert PROCESSOR.prompt_text(completion(prompt=BPE.encode("hello")).prompts[0]) == "hello"


def test_truncation_keeps_the_end_and_the_bos():
    ids = BPE.encode("the quick brown fox jumps over the lazy dog")
    text = "the quick brown fox jumps over the lazy dog"
    assert completion(prompt=text).prompts[0].token_ids == ids and ids[0] == BPE.bos_token_id
    assert completion(prompt=text, truncate_prompt_tokens=4).prompts[0].token_ids == [ids[0], *ids[-3:]]
    assert completion(prompt=text, truncate_prompt_tokens=1).prompts[0].token_ids == ids[-1:]
    assert completion(prompt=text, truncate_prompt_tokens=60).prompts[0].token_ids == ids
    long = list(range(5, 105))
    assert completion(prompt=long, truncate_prompt_tokens=-1, max_tokens=4).prompts[0].token_ids == long[-60:]
    assert completion(prompt=long, truncate_prompt_tokens=-1, max_tokens=4).prompts[0].params.max_tokens == 4
    assert chat(truncate_prompt_tokens=3).num_prompt_tokens == 3
    with pytest.raises(RequestError, match="the prompt has 100 tokens"):
        completion(prompt=long)


def test_generation_prompt_and_continuation():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " hi, "}]

    def text(**fields: object) -> str:
        return chat(messages=messages, **fields).prompts[0].text

    assert text().endswith("[assistant]hi,<|end|>[assistant]")
    assert text(add_generation_prompt=False).endswith("[assistant]hi,<|end|>")
    assert text(continue_final_message=True) == "<|start|>[user]hi<|end|>[assistant]hi, "
    assert text(continue_final_message=True, add_generation_prompt=False) == text(continue_final_message=True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text(continue_final_message=True, messages=[{"role": "user", "content": parts}]) if False else True
    with pytest.raises(RequestError, match="cannot both be true"):
        text(continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(RequestError, match="no content to continue"):
        chat(messages=[{"role": "assistant", "content": None}], continue_final_message=True)


def test_continuation_of_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "user", "content": parts}], continue_final_message=True)
    assert request.prompts[0].text == "<|start|>[user]a\nb"


def test_numbers_beyond_a_double_are_refused_where_larger_ones_are_clamped():
    assert completion(max_tokens=10**300).prompts[0].params.max_tokens < 64
    for endpoint, name in ((completion, "max_tokens"), (chat, "max_tokens"), (chat, "max_completion_tokens")):
        with pytest.raises(RequestError, match="must be in") as caught:
            endpoint(**{name: 10**400})
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"max_tokens": "abc"}, '("abc")'),
        ({"stop": ["a", {"b": None}]}, 'stop[1]: Expected `str`, got `object` ({"b": null})'),
        ({"stop_token_ids": [1, "q" * 500]}, f'("{"q" * 79}...)'),
        ({"logit_bias": {"5": "x"}}, "logit_bias[...]: Expected `float`, got `str`"),
        ({"model": 10**5000}, "model"),
    ],
    ids=["text", "object", "long", "some key", "thousands of digits"],
)
def test_a_wrong_type_shows_what_came(fields, shown):
    with pytest.raises(RequestError) as caught:
        shape({"prompt": "a", **fields}, CompletionRequest)
    assert shown in caught.value.message and len(caught.value.message) < 300
