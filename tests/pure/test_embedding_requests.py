"""Bodies of /v1/embeddings, and what becomes of a pooled vector."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from text_helpers import bpe_tokenizer, write_bpe_folder, write_bpe_gguf

from pyengine import embeddings
from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, Pooling, StepDeltas, TokenDelta, decode_to_engine, decode_to_server, encode
from pyengine.text.processor import ModelText, TextProcessor, load_model_text
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
LIMITS = Limits(max_model_len=64, vocab_size=BPE.vocab_size, hidden_size=48, max_prompts=4, max_prompt_tokens=100)
PROCESSOR = TextProcessor(ModelText(BPE), LIMITS, ["served"])


def prepare(**fields: object):
    return PROCESSOR.embeddings(json.dumps({"input": "hello", **fields}).encode())


def test_every_form_of_the_input():
    ids = BPE.encode("hello")
    for given in ("hello", ["hello"], ids, [ids]):
        _, prepared = prepare(input=given)
        assert [each.token_ids for each in prepared.prompts] == [ids]
        (request,) = prepared.to_requests(["r"])
        assert request.pooling is Pooling.MEAN and request.params.max_tokens == 0
        assert decode_to_engine(encode(request)) == request
    _, prepared = prepare(input=["hello", "the dog"], priority=-1, cache_salt="s")
    assert len(prepared.prompts) == 2 and (prepared.priority, prepared.cache_salt) == (-1, "s")
    assert prepare(add_special_tokens=False)[1].prompts[0].token_ids == BPE.encode("hello", False)
    assert len(prepare(input=[5] * 64)[1].prompts[0].token_ids) == 64
    assert prepare(input=list(range(5, 99)), truncate_prompt_tokens=3)[1].prompts[0].token_ids == [96, 97, 98]


def test_options():
    asked, prepared = prepare(encoding_format="base64", dimensions=48, pooling="last", user="me", model="served")
    assert (asked.encoding_format, asked.dimensions, prepared.pooling) == ("base64", 48, Pooling.LAST)


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ["a", 1]}, "input", "not a mixture"),
        ({"input": {"text": "a"}}, "input", "Expected"),
        ({"input": None}, "input", "missing"),
        ({"input": [BPE.vocab_size]}, "input", "outside"),
        ({"input": [-1]}, "input", "outside"),
        ({"input": ["a"] * 5}, "input", "at most 4 prompts"),
        ({"input": [5] * 65}, "input", "65 tokens"),
        ({"input": [[5] * 60] * 2}, "input", "100 tokens together"),
        ({"input": "\ud800"}, None, "surrogate"),
        ({"dimensions": 0}, "dimensions", "must be in [1, 48], got 0"),
        ({"dimensions": 49}, "dimensions", "must be in [1, 48], got 49"),
        ({"dimensions": "4"}, "dimensions", "Expected `int"),
        ({"dimensions": 10**300}, "dimensions", "must be in [1, 48]"),
        ({"encoding_format": "hex"}, "encoding_format", "Invalid enum value"),
        ({"pooling": "max"}, "pooling", "Invalid enum value"),
        ({"truncate_prompt_tokens": 64}, "truncate_prompt_tokens", "got 64"),
        ({"priority": 1 << 31}, "priority", "priority"),
        ({"cache_salt": "x" * 129}, "cache_salt", "128"),
        ({"model": "other"}, "model", "does not exist"),
        ({"temperature": 1}, "temperature", "unknown field"),
    ],
)
def test_wrong_values_are_named(fields, param, text):
    with pytest.raises(RequestError) as caught:
        prepare(**fields)
    assert text in caught.value.message and (param is None or caught.value.param == param)


def test_vectors_are_cut_and_of_length_one():
    pooled = np.asarray([3.0, 4.0, 12.0], "<f4").tobytes()
    np.testing.assert_allclose(embeddings.finish(pooled), np.asarray([3, 4, 12]) / 13, rtol=1e-6)
    np.testing.assert_allclose(embeddings.finish(pooled, 2), [0.6, 0.8], rtol=1e-6)
    assert embeddings.finish(np.zeros(3, "<f4").tobytes()).tolist() == [0, 0, 0]
    large = np.full(4, 3e38, "<f4").tobytes()
    np.testing.assert_allclose(embeddings.finish(large), [0.5] * 4, rtol=1e-6)
    vector = embeddings.finish(pooled)
    assert np.frombuffer(base64.b64decode(embeddings.to_base64(vector)), "<f4").tolist() == vector.tolist()


def test_the_checkpoint_says_how_it_pools(tmp_path):
    folder = write_bpe_folder(tmp_path / "model")
    assert load_model_text(folder).pooling is Pooling.MEAN
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    text = load_model_text(folder)
    assert text.pooling is Pooling.LAST
    processor = TextProcessor(text, LIMITS)
    assert processor.embeddings(b'{"input": "a"}')[1].pooling is Pooling.LAST
    assert processor.embeddings(b'{"input": "a", "pooling": "mean"}')[1].pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("modes", "pooling", "named"),
    [
        ({"mean_tokens": True, "lasttoken": False}, Pooling.MEAN, None),
        ({"lasttoken": True}, Pooling.LAST, None),
        ({"cls_token": True}, Pooling.MEAN, "pooled by cls_token"),
        ({"mean_tokens": True, "lasttoken": True}, Pooling.MEAN, "pooled by mean and last"),
    ],
)
def test_pooling_of_a_folder(modes, pooling, named, tmp_path):
    folder = write_bpe_folder(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 48, "include_prompt": True}
    config |= {f"pooling_mode_{name}": on for name, on in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    text = load_model_text(folder)
    assert text.pooling is pooling and [named in line for line in text.warnings if "pooled" in line] == [True] * bool(
        named
    )


@pytest.mark.parametrize(
    ("number", "pooling", "named"),
    [
        (None, Pooling.MEAN, None),
        (0, Pooling.MEAN, None),
        (1, Pooling.MEAN, None),
        (2, Pooling.MEAN, "pooled by cls"),
        (3, Pooling.LAST, None),
        (4, Pooling.MEAN, "pooled by rank"),
        (9, Pooling.MEAN, "pooled by type 9"),
    ],
)
def test_pooling_of_a_gguf_file(number, pooling, named, tmp_path):
    path = write_bpe_gguf(tmp_path / "model.gguf", **({} if number is None else {"llama.pooling_type": number}))
    text = load_model_text(path)
    assert text.pooling is pooling and [named in line for line in text.warnings if "pooled" in line] == [True] * bool(
        named
    )


def test_it_travels_as_bytes():
    message = StepDeltas([TokenDelta("r", 0, [], FinishReason.STOP, embedding=b"\0\1\2\3")])
    assert decode_to_server(encode(message)) == message
