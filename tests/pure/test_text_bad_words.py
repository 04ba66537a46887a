"""Bad words as token sequences."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import Request, decode_to_engine, encode
from pyengine.sampling_params import SamplingParams
from pyengine.text.bad_words import with_bad_words
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
PROCESSOR = TextProcessor(ModelText(BPE), Limits(max_model_len=64, vocab_size=BPE.vocab_size))


def sequences(*words: str) -> tuple[tuple[int, ...], ...]:
    return with_bad_words(SamplingParams(bad_words=words), BPE, BPE.vocab_size).bad_words_token_ids


def ids(text: str) -> tuple[int, ...]:
    return tuple(BPE.encode(text, add_special_tokens=False))


def test_a_word_alone_and_behind_a_space():
    assert sequences("the") == (ids("the"), ids(" the")) == sequences(" the") == sequences("the", " the")
    assert len(ids(" the")) == 1 and len(ids("lazy dog")) > 1
    assert sequences("lazy dog") == (ids("lazy dog"), ids(" lazy dog"))


def test_a_sequence_that_ends_in_the_other_is_not_repeated():
    word = next(w for w in ("日", "<é", "{", "Q") if ids(" " + w)[-len(ids(w)) :] == ids(w))
    assert sequences(word) == (ids(word),)


def test_white_space_is_a_word_too():
    assert sequences("\n")[0] == ids("\n")


def test_nothing_asked_for_costs_nothing():
    params = SamplingParams(temperature=0.5)
    assert with_bad_words(params, BPE, BPE.vocab_size) is params


def test_they_arrive_through_every_door():
    body = {"prompt": "hello", "bad_words": ["the", "lazy dog"]}
    (prompt,) = PROCESSOR.completion(json.dumps(body).encode()).prompts
    assert prompt.params.bad_words_token_ids == sequences("the", "lazy dog")
    assert PROCESSOR.completion(b'{"prompt": "hello", "bad_words": []}').prompts[0].params.bad_words_token_ids == ()
    offline = PROCESSOR.prepare_offline("hello", SamplingParams(bad_words=["the", "lazy dog"]))
    assert offline.params.bad_words_token_ids == prompt.params.bad_words_token_ids
    request = Request("a", [1], prompt.params)
    assert decode_to_engine(encode(request)) == request


@pytest.mark.parametrize("words", [("x",), ("ab" * 50,), ("x" * 257,), ("\ud800",)])
def test_what_cannot_be_banned_is_refused(words):
    with pytest.raises(RequestError) as caught:
        with_bad_words(SamplingParams(bad_words=words), BPE, 5)
    assert caught.value.param == "bad_words"
