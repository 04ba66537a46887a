"""Incremental decoding and stop strings: the same result however tokens are grouped and characters are cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import TEXTS, bpe_tokenizer, write_sentencepiece_gguf

from pyengine.outputs import CompletionOutput
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.sampling_params import SamplingParams
from pyengine.text.detokenizer import Detokenizer
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.stop_strings import StopAutomaton
from pyengine.text.tokenizer import load_tokenizer

BPE = bpe_tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory):
    return load_tokenizer(write_sentencepiece_gguf(tmp_path_factory.mktemp("spm") / "m.gguf"))


def groups(items: list, cuts: list[int]) -> list[list]:
    """``items`` in runs of the given sizes, the sizes used in turn."""
    out, start, turn = [], 0, 0
    while start < len(items):
        size = cuts[turn % len(cuts)] if cuts else 1
        out.append(items[start : start + size])
        start, turn = start + max(size, 1), turn + 1
    return out


# ---- detokenizer -----------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    ids=st.lists(st.integers(-2, BPE.vocab_size + 3), max_size=40),
    cuts=st.lists(st.integers(1, 7), max_size=5),
    skip=st.booleans(),
)
def test_deltas_add_up_to_decode_for_bytes(ids, cuts, skip):
    detokenizer = Detokenizer(BPE, skip_special_tokens=skip)
    text = "".join([detokenizer.push(run) for run in groups(ids, cuts)]) + detokenizer.finish()
    assert text == BPE.decode(ids, skip)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 530), max_size=40), cuts=st.lists(st.integers(1, 7), max_size=5), skip=st.booleans())
def test_deltas_add_up_to_decode_for_sentencepiece(sentencepiece_tokenizer, ids, cuts, skip):
    detokenizer = Detokenizer(sentencepiece_tokenizer, skip_special_tokens=skip)
    text = "".join([detokenizer.push(run) for run in groups(ids, cuts)]) + detokenizer.finish()
    assert text == sentencepiece_tokenizer.decode(ids, skip)


@pytest.mark.parametrize("text", TEXTS)
def test_never_half_a_character(text):
    """Every prefix of the deltas is a prefix of the text: no replacement character is ever shown in between."""
    ids, detokenizer, shown = BPE.encode(text, False), Detokenizer(BPE), ""
    for token_id in ids:
        shown += detokenizer.push([token_id])
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


def test_incomplete_tail_becomes_one_replacement_character():
    ids = BPE.encode("a\U0001f469", False)
    detokenizer = Detokenizer(BPE)
    assert detokenizer.push(ids[:-1]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_a_continuation_keeps_its_leading_space(sentencepiece_tokenizer):
    ids = sentencepiece_tokenizer.encode("the dog", add_special_tokens=False)
    assert Detokenizer(sentencepiece_tokenizer).push(ids) == "the dog"
    assert Detokenizer(sentencepiece_tokenizer, prompt_token_ids=[1]).push(ids) == "the dog"  # BOS is no text
    assert Detokenizer(sentencepiece_tokenizer, prompt_token_ids=[1, *ids]).push(ids) == " the dog"


def test_cost_per_token_does_not_grow():
    """A hundred thousand tokens in linear time: a re-decode of the past would take hours."""
    ids = BPE.encode("the lazy dog didn't look back; Größe 😀 " * 4000, False)
    detokenizer = Detokenizer(BPE)
    start = time.perf_counter()
    text = "".join([detokenizer.push([token_id]) for token_id in ids])
    assert time.perf_counter() - start < 10
    assert len(ids) > 50_000 and text == BPE.decode(ids)


# ---- stop strings ----------------------------------------------------------------------------------------------------


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """The specification: the match that is complete first, the longest of several; (start, end)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end - len(max(found, key=len)), end
    return None


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 4), max_size=4),
)
def test_automaton_is_the_specification_at_every_cut(text, stops, cuts):
    automaton, fed, found = StopAutomaton(stops), 0, None
    for piece in groups(list(text), cuts):
        match = automaton.feed("".join(piece))
        if match is not None:
            end = fed + match[1]
            found = (end - len(match[0]), end)
            break
        fed += len(piece)
        longest = max((k for stop in stops for k in range(len(stop)) if text[:fed].endswith(stop[:k])), default=0)
        assert automaton.num_pending == longest
    assert found == first_stop(text, stops)


def run(params: SamplingParams, ids: list[int], cuts: list[int], last: dict | None = None) -> tuple[Generation, list]:
    generation, deltas = Generation(BPE, params, [5, 6]), []
    runs = groups(ids, cuts)
    for i, token_ids in enumerate(runs):
        end = last if last and i == len(runs) - 1 else {}
        deltas.append(generation.push(TokenDelta("r", 0, token_ids, num_cached_tokens=7, **end)))
    return generation, deltas


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("ab <é😀", max_size=25),
    stops=st.lists(st.text("ab <é😀", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 6), max_size=4),
    min_tokens=st.integers(0, 6),
    include=st.booleans(),
)
def test_generation_does_not_depend_on_grouping(text, stops, cuts, min_tokens, include):
    params = SamplingParams(stop=tuple(stops), min_tokens=min_tokens, include_stop_str_in_output=include)
    ids = BPE.encode(text, False)
    end = {"finish_reason": FinishReason.LENGTH}
    single, _ = run(params, ids, [1], end)
    grouped, deltas = run(params, ids, cuts, end)
    assert (grouped.text, grouped.token_ids, grouped.finish_reason, grouped.stop_reason) == (
        single.text,
        single.token_ids,
        single.finish_reason,
        single.stop_reason,
    )
    assert "".join(delta.text for delta in deltas) == grouped.text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == grouped.token_ids
    if not min_tokens:
        found = first_stop(text, stops)
        expected = text if found is None else text[: found[1] if include else found[0]]
        assert grouped.text == expected
        assert (grouped.stop_reason is not None) == (found is not None)


def test_text_that_may_become_a_stop_string_is_held_back():
    generation = Generation(BPE, SamplingParams(stop=("END",)))
    texts = [generation.push(TokenDelta("r", 0, BPE.encode(char, False))).text for char in "xENyEND"]
    assert texts == ["x", "", "", "ENy", "", "", ""]
    assert (generation.finish_reason, generation.stop_reason, generation.text) == ("stop", "END", "xENy")
    assert generation.num_output_tokens == 7
    assert generation.push(TokenDelta("r", 0, [40])) == TextDelta("")


def test_stop_string_inside_a_delta_aborts_and_drops_the_rest():
    ids = BPE.encode("one STOP two", False)
    generation = Generation(BPE, SamplingParams(stop=("STOP",)))
    delta = generation.push(TokenDelta("r", 0, ids))
    assert delta.abort and delta.text == "one " and delta.finish_reason == "stop" and delta.stop_reason == "STOP"
    assert BPE.decode(generation.token_ids) == "one STOP"
    finished = Generation(BPE, SamplingParams(stop=("STOP",)))
    assert not finished.push(TokenDelta("r", 0, ids, FinishReason.LENGTH)).abort


def test_held_text_is_released_at_the_end():
    generation = Generation(BPE, SamplingParams(stop=("END",)))
    assert generation.push(TokenDelta("r", 0, BPE.encode("aEN", False))).text == "a"
    assert generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1)).text == "EN"
    assert generation.text == "aEN"


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_the_stop_token_itself(include, skip):
    """It counts as a token, and is text only when stops are included and it is not skipped as special."""
    params = SamplingParams(stop_token_ids=(1,), include_stop_str_in_output=include, skip_special_tokens=skip)
    generation = Generation(BPE, params)
    generation.push(TokenDelta("r", 0, BPE.encode("ok", False)))
    delta = generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1))
    assert (delta.finish_reason, delta.stop_reason) == ("stop", 1)
    assert generation.text == ("ok<|end|>" if include and not skip else "ok")
    assert generation.token_ids[-1] == 1


def test_end_of_sequence_has_no_stop_reason():
    generation = Generation(BPE, SamplingParams())
    generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1))
    assert (generation.finish_reason, generation.stop_reason, generation.text) == ("stop", None, "")


def test_min_tokens_lets_early_stop_strings_pass():
    ids = [BPE.encode(char, False)[0] for char in "a!b!c"]
    generation = Generation(BPE, SamplingParams(stop=("!",), min_tokens=2))
    texts = [generation.push(TokenDelta("r", 0, [token_id])).text for token_id in ids[:4]]
    assert texts == ["a", "!", "b", ""] and generation.text == "a!b"


def test_errors_and_aborts_end_a_generation():
    generation = Generation(BPE, SamplingParams(), index=3)
    generation.push(TokenDelta("r", 3, BPE.encode("some", False), num_cached_tokens=4))
    delta = generation.push(TokenDelta("r", 3, [], FinishReason.ERROR, error="logits are NaN"))
    assert (delta.finish_reason, delta.error) == ("error", "logits are NaN")
    output = CompletionOutput.of(generation)
    assert (output.index, output.text, output.finish_reason, output.error) == (3, "some", "error", "logits are NaN")
    assert generation.num_cached_tokens == 4 and output.finished
    aborted = Generation(BPE, SamplingParams())
    assert aborted.push(TokenDelta("r", 0, [], FinishReason.ABORT)).finish_reason == "abort"


def test_stop_strings_cost_the_same_whatever_they_are():
    """Many long stop strings that almost match at every character."""
    stops = tuple("a" * 500 + chr(98 + i) for i in range(16))
    generation = Generation(BPE, SamplingParams(stop=stops))
    ids = BPE.encode("a" * 5000, False)
    start = time.perf_counter()
    for token_id in ids:
        generation.push(TokenDelta("r", 0, [token_id]))
    assert time.perf_counter() - start < 5
    generation.push(TokenDelta("r", 0, [], FinishReason.LENGTH))
    assert generation.text == "a" * 5000
