"""A grammar behind thinking, in the engine: the thinking is what it would have been, the answer matches."""

from __future__ import annotations

import json

import pytest

from pyengine import LLM, SamplingParams
from pyengine.sampling_params import Thinking
from pyengine.structured.grammar import compile_grammar

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer", "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["total", "sure"],
    "additionalProperties": False,
}
GRAMMAR = compile_grammar({"json": SCHEMA})


def _turn(n: int) -> str:
    return (
        f"<|im_start|>user\nWhat is {n} plus {n}?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        f'It is a small sum. {n} plus {n} is {2 * n}.\n</think>\n{{"answer": {2 * n}}}<|im_end|>\n'
    )


PROMPT = "".join(map(_turn, (1, 2, 3))) + "<|im_start|>user\nWhat is 4 plus 4?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def llm():
    return LLM("smollm2-135m", device="cpu", max_num_seqs=8, max_model_len=512, kv_cache_memory="64MiB")


def _run(llm, inside: bool, **options: object):
    params = SamplingParams(temperature=0, max_tokens=60, **options)
    return llm.generate(PROMPT + "<think>\n" * inside, params, use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("inside", [True, False], ids=["opened by the prompt", "opened by the model"])
@pytest.mark.parametrize("overlap", [False, True], ids=["in order", "overlapped"])
def test_the_grammar_begins_where_the_thinking_ends(llm, inside, overlap):
    llm._engine._overlap = overlap
    free = _run(llm, inside)
    bound = _run(llm, inside, grammar=GRAMMAR, thinking=Thinking("<think>", "</think>", inside))
    llm._engine._overlap = False
    (thought, answer), (free_thought, free_answer) = (each.text.split("</think>") for each in (bound, free))
    assert thought == free_thought and "small sum" in thought
    assert set(json.loads(answer)) == {"total", "sure"} != set(json.loads(free_answer))
    assert bound.finish_reason == "stop"


def test_without_thinking_it_begins_at_once(llm):
    assert set(json.loads(_run(llm, False, grammar=GRAMMAR).text)) == {"total", "sure"}


def test_thinking_that_does_not_end_is_cut_by_length(llm):
    thinking = Thinking("<think>", "</think>", True)
    output = llm.generate(
        "Once upon a time", SamplingParams(temperature=0, max_tokens=20, grammar=GRAMMAR, thinking=thinking), False
    )[0].outputs[0]
    free = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=20), False)[0].outputs[0]
    assert output.finish_reason == "length" and output.text == free.text


@pytest.mark.parametrize("overlap", [False, True], ids=["in order", "overlapped"])
@pytest.mark.parametrize("grammar", [None, GRAMMAR], ids=["free", "bound"])
def test_a_budget_ends_the_thinking_and_an_answer_follows(llm, overlap, grammar):
    llm._engine._overlap = overlap
    free = _run(llm, True)
    end = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    for budget in (0, 4):
        bound = _run(llm, True, grammar=grammar, thinking=Thinking("<think>", "</think>", True, budget))
        assert bound.token_ids[:budget] == free.token_ids[:budget]
        assert bound.token_ids[budget:][: len(end)] == end
        answer = json.loads(bound.text.split("</think>")[-1])  # this model likes to write the mark once more
        assert (set(answer) == {"total", "sure"}) is (grammar is not None) and bound.finish_reason == "stop"
    large = _run(llm, True, grammar=grammar, thinking=Thinking("<think>", "</think>", True, 50))
    llm._engine._overlap = False
    assert large.text.startswith(free.text.split("</think>")[0] + "</think>")
    assert large.token_ids == free.token_ids or grammar is not None


def test_a_crowd_of_thinkers_and_others(llm):
    kinds = [
        {"grammar": GRAMMAR, "thinking": Thinking("<think>", "</think>", False)},
        {"grammar": GRAMMAR},
        {"thinking": Thinking("<think>", "</think>", False, 5)},
        {},
        {"grammar": GRAMMAR, "thinking": Thinking("<think>", "</think>", False), "temperature": 0.7, "seed": 3},
    ]
    params = [SamplingParams(**{"temperature": 0, "max_tokens": 60, **kinds[i % 5]}) for i in range(15)]
    together = llm.generate([PROMPT] * 15, params, use_tqdm=False)
    alone = [llm.generate(PROMPT, each, use_tqdm=False)[0] for each in params[:5]]
    assert [each.outputs[0].text for each in together] == [each.outputs[0].text for each in alone] * 3
