"""Structured output on the real model: what comes out matches, also when cut, in a crowd, and beside free text."""

from __future__ import annotations

import json
import re

import pytest
from llguidance import LLExecutor

from pyengine import LLM, SamplingParams
from pyengine.errors import RequestError
from pyengine.sampling_params import Thinking
from pyengine.structured import matcher
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm():
    return LLM("smollm2-135m", device="cpu", max_num_seqs=8, max_model_len=512, kv_cache_memory="64MiB")


def _run(llm, spec: dict, prompt: str = "Describe a person as JSON:", **options):
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=60, grammar=compile_grammar(spec), **options)
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]


def test_a_schema_is_followed(llm):
    output = _run(llm, {"json": PERSON})
    person = json.loads(output.text)
    assert set(person) == {"name", "age"} and 0 <= person["age"] <= 120 and output.finish_reason == "stop"


@pytest.mark.parametrize("spec, pattern", [
    ({"regex": r"[a-c]{3}-\d{2}"}, r"[a-c]{3}-\d{2}"),
    ({"choice": ["yes", "no", "may be, \"who\" knows"]}, r'yes|no|may be, "who" knows'),
    ({"grammar": 'start: "x" ("," "x")~2'}, r"x,x,x"),
])  # fmt: skip
def test_other_kinds(llm, spec, pattern):
    output = _run(llm, spec)
    assert re.fullmatch(pattern, output.text) and output.finish_reason == "stop"


@pytest.mark.parametrize("text", ["<|im_end|>x", "<|im_start|>", "a<|im_end|>b<|im_end|>", "<|endoftext|>"])
def test_the_name_of_a_special_token_is_text_like_any_other(llm, text):
    for spec in ({"choice": [text]}, {"regex": re.escape(text)}, {"grammar": f"start: {json.dumps(text)}"}):
        output = _run(llm, spec)
        assert (output.text, output.finish_reason) == (text, "stop")
    assert json.loads(_run(llm, {"json": {"const": text}}).text) == text


def test_any_object(llm):
    output = _run(llm, {"json_object": True})
    assert output.text.lstrip().startswith("{")


def test_constrained_and_free_sequences_share_a_batch(llm):
    grammar = compile_grammar({"json": PERSON})
    free = SamplingParams(temperature=0.0, max_tokens=20)
    bound = SamplingParams(temperature=0.8, seed=1, max_tokens=60, grammar=grammar)
    prompts = ["The sea is", "Describe a person as JSON:", "Once upon a time", "Describe a person as JSON:"]
    together = llm.generate(prompts, [free, bound, free, bound], use_tqdm=False)
    alone = [llm.generate(p, s, use_tqdm=False)[0] for p, s in zip(prompts, [free, bound, free, bound], strict=True)]
    assert [o.outputs[0].text for o in together] == [o.outputs[0].text for o in alone]
    json.loads(together[1].outputs[0].text)


def test_masks_are_in_time_when_steps_overlap(llm):
    plain = _run(llm, {"json": PERSON})
    llm._engine._overlap = True
    try:
        assert _run(llm, {"json": PERSON}) == plain
    finally:
        llm._engine._overlap = False


def test_masks_by_several_threads_are_the_same(llm):
    """Plain grammars and some that thinking may come before, at places of their own."""
    factory = GrammarFactory(llm.get_tokenizer(), 49152)
    grammars = [
        factory.make(compile_grammar({"json": PERSON}), Thinking("<think>", "</think>"))
        if i % 3
        else factory.make(compile_grammar({"regex": f"a{{{i}}}[b-z ]+"}))
        for i in range(3 * matcher.PARALLEL_FROM)
    ]
    for i, grammar in enumerate(grammars[::3]):
        for _ in range(2 * i):
            assert grammar.accept(llm.get_tokenizer().token_to_id("a"))
    alone, together = factory.masks(len(grammars)), factory.masks(len(grammars))
    factory._mask_threads = None
    factory.fill(grammars, alone)
    factory._mask_threads = LLExecutor(num_threads=3)
    factory.fill(grammars, together)
    assert (together == alone).all()
    assert len({mask.tobytes() for mask in alone}) > 2


def test_a_cut_answer_is_valid_up_to_the_cut(llm):
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=5, grammar=compile_grammar({"json": PERSON}))
    output = llm.generate("Describe a person as JSON:", params, use_tqdm=False)[0].outputs[0]
    whole = _run(llm, {"json": PERSON}).text
    assert output.finish_reason == "length" and whole.startswith(output.text)


@pytest.mark.parametrize("spec", [
    {"regex": "(a"}, {"json": {"type": "nope"}}, {"json": "[1"}, {"grammar": "start: foo"}, {"choice": []},
    {"choice": [1]}, {}, {"json": {}, "regex": "a"}, {"wat": 1}, {"regex": "a" * (1 << 19)},
])  # fmt: skip
def test_impossible_specifications_are_refused(spec):
    with pytest.raises(RequestError):
        compile_grammar(spec)


def test_a_hostile_expression_fails_alone_and_soon(llm):
    import time

    begin = time.monotonic()
    try:
        output = _run(llm, {"regex": "((a{1,1000}){1,1000}){1,1000}b"})
        assert output.finish_reason in ("error", "length", "stop")
    except RequestError:
        pass
    assert time.monotonic() - begin < 20
    assert llm.generate("The sea is", SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)[0].outputs[0].text
