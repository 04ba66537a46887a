"""Log-probabilities beside the text: the same however tokens are grouped, cut where the text is cut, both shapes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import bpe_tokenizer

from pyengine.outputs import CompletionOutput
from pyengine.protocol import FinishReason, TokenDelta, TokenLogprob
from pyengine.sampling_params import SamplingParams
from pyengine.text.generation import Generation
from server.openai.logprobs import LogprobShapes

BPE = bpe_tokenizer()
END = 1


def score(token_id: int) -> TokenLogprob:
    return TokenLogprob(-token_id / 1000, 2, [7, token_id], [-0.1, -token_id / 1000])


def run(params: SamplingParams, ids: list[int], cuts: list[int], reason: FinishReason | None, score_all: bool = False):
    """Ids in runs of the given sizes through a generation; what left, and the generation."""
    generation, left, start, turn = Generation(BPE, params, score_all=score_all), [], 0, 0
    while start < len(ids):
        size = cuts[turn % len(cuts)]
        part, turn, start = ids[start : start + size], turn + 1, start + size
        end = reason if start >= len(ids) else None
        stop = part[-1] if end is FinishReason.STOP else None
        delta = TokenDelta("r", 0, part, end, stop, logprobs=[score(i) for i in part])
        left.append(generation.push(delta))
    return left, generation


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("ab <é😀", min_size=1, max_size=20),
    stops=st.lists(st.text("ab <é😀", min_size=1, max_size=3), max_size=2),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    stopped=st.booleans(),
    include=st.booleans(),
    score_all=st.booleans(),
)
def test_scores_do_not_depend_on_grouping_and_follow_the_text(text, stops, cuts, stopped, include, score_all):
    params = SamplingParams(stop=tuple(stops), logprobs=2, include_stop_str_in_output=include)
    ids = [*BPE.encode(text, False), END]
    reason = FinishReason.STOP if stopped else FinishReason.LENGTH
    _, single = run(params, ids, [1], reason, score_all)
    left, grouped = run(params, ids, cuts, reason, score_all)
    assert grouped.scored == single.scored == [each for delta in left for each in delta.scored]
    assert grouped.logprobs == [score(i) for i in grouped.token_ids]
    scored_ids = [each.token_id for each in grouped.scored]
    assert scored_ids == grouped.token_ids[: len(scored_ids)]
    if score_all:
        assert scored_ids == grouped.token_ids
    elif grouped.stop_reason is None:
        assert BPE.decode(scored_ids) == grouped.text
    else:  # a token that begins in the text may end behind it, no token begins behind it
        assert BPE.decode(scored_ids).startswith(grouped.text)
        assert not scored_ids or grouped.scored[-1].offset < len(grouped.text)
    for each, index in zip(grouped.scored, range(len(ids)), strict=False):
        whole = BPE.decode(ids[:index])
        assert each.offset == len(whole.rstrip("\ufffd")) and each.logprob == score(each.token_id)


def test_held_text_holds_its_scores():
    generation = Generation(BPE, SamplingParams(stop=("END",), logprobs=0))
    deltas = []
    for char in "xENyEND":
        (token_id,) = BPE.encode(char, False)
        deltas.append(generation.push(TokenDelta("r", 0, [token_id], logprobs=[score(token_id)])))
    names = ["".join(BPE.decode([each.token_id]) for each in delta.scored) for delta in deltas]
    assert names == ["x", "", "", "ENy", "", "", ""]


def test_no_scores_unless_asked_for():
    left, generation = run(SamplingParams(), [40, 41], [1], FinishReason.LENGTH)
    assert not generation.logprobs and not generation.scored and not any(delta.scored for delta in left)


def test_offline_output_has_an_entry_for_every_id():
    _, generation = run(SamplingParams(logprobs=2), [40, 41, END], [2], FinishReason.STOP)
    output = CompletionOutput.of(generation)
    assert list(output.token_ids) == [40, 41, END] and len(output.logprobs) == 3
    assert output.cumulative_logprob == pytest.approx(-0.082)
    assert list(output.logprobs[0]) == [40, 7]
    assert (output.logprobs[0][7].rank, output.logprobs[0][7].logprob) == (1, -0.1)
    assert output.logprobs[0][40].decoded_token == BPE.decode([40])
    assert CompletionOutput.of(Generation(BPE, SamplingParams())).logprobs is None


def test_shapes():
    emoji = BPE.encode("😀", False)
    assert len(emoji) > 1
    _, generation = run(SamplingParams(logprobs=2), [BPE.encode("a", False)[0], *emoji], [3], FinishReason.LENGTH)
    chat = LogprobShapes(BPE).chat(generation.scored)["content"]
    assert bytes(byte for entry in chat for byte in entry["bytes"]).decode() == generation.text == "a😀"
    assert set(chat[0]) == {"token", "logprob", "bytes", "top_logprobs"} and len(chat[0]["top_logprobs"]) == 2
    assert set(chat[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    shape = LogprobShapes(BPE).completion(generation.scored)
    assert shape["text_offset"][:2] == [0, 1] and {len(values) for values in shape.values()} == {len(chat)}
    assert shape["tokens"][0] in shape["top_logprobs"][0]
    named = LogprobShapes(BPE, as_ids=True).completion(generation.scored)
    assert named["tokens"] == [f"token_id:{each.token_id}" for each in generation.scored]


def test_minus_infinity_is_a_number_that_json_has():
    generation = Generation(BPE, SamplingParams(logprobs=1))
    logprob = TokenLogprob(-math.inf, 9, [5], [-math.inf])
    generation.push(TokenDelta("r", 0, [40], logprobs=[logprob]))
    chat = LogprobShapes(BPE).chat(generation.scored)
    assert json.loads(json.dumps(chat, allow_nan=False))["content"][0]["logprob"] == -9999.0
    completion = LogprobShapes(BPE).completion(generation.scored)
    assert completion["token_logprobs"] == [-9999.0] and set(completion["top_logprobs"][0].values()) == {-9999.0}
