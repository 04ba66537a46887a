"""The offline class on the default model."""

from __future__ import annotations

import itertools

import pytest

from pyengine import LLM, SamplingParams
from pyengine.errors import RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def llm():
    return LLM("smollm2-135m", device="cpu", max_num_seqs=16, max_model_len=512, kv_cache_memory="64MiB")


def test_it_answers(llm):
    output = llm.chat([{"role": "user", "content": "What is the capital of France?"}], GREEDY, use_tqdm=False)[0]
    assert "Paris" in output.outputs[0].text and output.finished and output.prompt.endswith("<|im_start|>assistant\n")


def test_hundreds_of_prompts_come_back_in_order(llm):
    prompts = [f"{word} number {i} is" for i in range(40) for word in ("The house", "A road", "My friend")]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=3), use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert all(len(output.outputs[0].token_ids) == 3 for output in outputs)
    again = llm.generate(prompts[7], SamplingParams(temperature=0.0, max_tokens=3), use_tqdm=False)[0]
    assert again.outputs[0].text == outputs[7].outputs[0].text and again.num_cached_tokens >= 0


def test_every_form_of_a_prompt_and_parameters_for_each(llm):
    ids = llm.get_tokenizer().encode("The sea is")
    prompts = ["The sea is", ids, {"prompt": "The sea is"}, {"prompt_token_ids": ids}]
    params = [SamplingParams(temperature=0.0, max_tokens=n + 1) for n in range(4)]
    texts = [output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(texts))


def test_stop_strings_and_n(llm):
    params = SamplingParams(temperature=0.9, seed=2, max_tokens=20, n=3, stop=["."])
    outputs = llm.generate("The sea is", params, use_tqdm=False)[0].outputs
    assert [output.index for output in outputs] == [0, 1, 2]
    assert all("." not in output.text for output in outputs) and len({output.text for output in outputs}) > 1


def test_bad_words(llm):
    params = SamplingParams(temperature=0.0, max_tokens=16, bad_words=["Paris", "the city of"])
    text = llm.generate("The capital of France is", params, use_tqdm=False)[0].outputs[0].text
    assert "Paris" not in text and "the city of" not in text


def test_prompt_logprobs(llm):
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=1, ignore_eos=True)
    prompt = llm.get_tokenizer().encode("The sea is")
    answer = llm.generate(prompt, params, use_tqdm=False)[0]
    assert answer.prompt_logprobs is None
    whole = [*prompt, *answer.outputs[0].token_ids]
    scored = llm.generate(whole, SamplingParams(max_tokens=0, prompt_logprobs=1), use_tqdm=False)[0]
    assert scored.outputs[0].finish_reason == "length" and not scored.outputs[0].token_ids
    assert scored.prompt_logprobs[0] is None and len(scored.prompt_logprobs) == len(whole)
    assert scored.prompt_logprobs[len(prompt) :] == answer.outputs[0].logprobs
    assert [next(iter(each)) for each in scored.prompt_logprobs[1:]] == whole[1:]


def test_truncated_prompts(llm):
    ids = llm.get_tokenizer().encode("one two three four five six seven eight")
    cut = SamplingParams(temperature=0.0, max_tokens=2, truncate_prompt_tokens=3)
    output = llm.generate(ids, cut, use_tqdm=False)[0]
    assert output.prompt_token_ids == ids[-3:] and output.prompt is None
    long = SamplingParams(temperature=0.0, max_tokens=2, truncate_prompt_tokens=-1)
    assert len(llm.generate(ids * 100, long, use_tqdm=False)[0].prompt_token_ids) == 510
    messages = [{"role": "user", "content": "one two three " * 50}]
    four = SamplingParams(temperature=0.0, max_tokens=2, truncate_prompt_tokens=4)
    prompt = llm.chat(messages, four, use_tqdm=False)[0].prompt_token_ids  # the BOS of this model begins every message
    assert len(prompt) == 4 and prompt == llm.get_tokenizer().encode("<|im_start|>assistant\n", False)
    assert llm.embed([ids, ids[-3:]], truncate_prompt_tokens=3, use_tqdm=False)[0].prompt_token_ids == ids[-3:]
    with pytest.raises(RequestError, match=r"truncate_prompt_tokens must be -1 or in \[1, 511\], got 512"):
        llm.generate(ids, SamplingParams(truncate_prompt_tokens=512), use_tqdm=False)


def test_a_salt_parts_the_prefix_cache(llm):
    prompt = "Salted and unsalted butter taste different in the end, " * 4
    cached = [
        llm.generate(prompt, GREEDY, use_tqdm=False, cache_salt=salt)[0].num_cached_tokens
        for salt in ("a", "b", "a", "b", "")
    ]
    assert cached[:2] == [0, 0] and cached[2] == cached[3] > 0 and cached[4] == 0
    with pytest.raises(RequestError, match="cache_salt may have at most 128"):
        llm.generate(prompt, GREEDY, use_tqdm=False, cache_salt="x" * 129)


def test_the_first_in_priority_is_first_done(llm):
    prompts, order = [f"Prompt number {i} says" for i in range(48)], []  # three times what runs at once
    step = llm.engine.step

    def watched():
        deltas = step()
        order.extend(delta.request_id for delta in deltas if delta.finish_reason is not None)
        return deltas

    llm.engine.step = watched
    try:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False, priority=[5] * 47 + [-1])
    finally:
        del llm.engine.step
    assert order.index(outputs[-1].request_id) < 16
    with pytest.raises(ValueError, match="one priority or 48"):
        llm.generate(prompts, GREEDY, use_tqdm=False, priority=[1])
    with pytest.raises(RequestError, match="priority"):
        llm.generate(prompts, GREEDY, use_tqdm=False, priority=1 << 40)


TEXTS = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Rates rose."]


@pytest.mark.parametrize("pooling", ["mean", "last", None])
def test_embeddings_tell_texts_apart(llm, pooling):
    outputs = llm.embed(TEXTS, pooling, use_tqdm=False)
    assert [output.prompt for output in outputs] == TEXTS and all(output.finished for output in outputs)
    cat, other_cat, rates = (output.outputs.embedding for output in outputs)
    assert sum(a * b for a, b in zip(cat, other_cat, strict=True)) > sum(a * b for a, b in zip(cat, rates, strict=True))
    assert llm.embed(TEXTS[1], pooling, use_tqdm=False)[0].outputs.embedding == other_cat


def test_embeddings_have_the_dimensions_asked_for(llm):
    whole, cut = (llm.embed(TEXTS[0], dimensions=n, use_tqdm=False)[0].outputs.embedding for n in (None, 32))
    length = sum(value * value for value in whole[:32]) ** 0.5
    assert len(whole) == 576 and cut == pytest.approx([value / length for value in whole[:32]], abs=1e-6)
    for arguments, text in (({"dimensions": 0}, "dimensions"), ({"pooling": "max"}, "pooling")):
        with pytest.raises(RequestError, match=text):
            llm.embed("x", use_tqdm=False, **arguments)


def test_bad_prompts_raise_before_anything_runs(llm):
    for prompt, text in (("", "empty"), ([1, 10**6], "1000000"), ("word " * 600, "512"), ({"wat": 1}, "wat")):
        with pytest.raises(RequestError, match=text):
            llm.generate(prompt, GREEDY, use_tqdm=False)
    with pytest.raises(ValueError, match="one for each"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    assert llm.generate("The sea is", GREEDY, use_tqdm=False)[0].finished
