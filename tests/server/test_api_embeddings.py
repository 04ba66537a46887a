"""/v1/embeddings through a running server and OpenAI's client."""

from __future__ import annotations

import base64
import concurrent.futures
import json

import numpy as np
import openai
import pytest

MODEL = "smollm2-135m"
TEXTS = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Interest rates rose again in March."]


def embed(client, **options: object) -> np.ndarray:
    answer = client.embeddings.create(model=MODEL, **options)
    assert [each.index for each in answer.data] == list(range(len(answer.data))) and answer.object == "list"
    return np.asarray([each.embedding for each in answer.data])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_become_vectors(client, pooling):
    options = {"input": TEXTS, "extra_body": {"pooling": pooling}}
    vectors = embed(client, encoding_format="float", **options)
    assert vectors.shape == (3, 576)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > max(vectors[0] @ vectors[2], vectors[1] @ vectors[2])
    assert (embed(client, **options) == vectors).all()  # the client itself asks for base64
    alone = np.concatenate([embed(client, input=text, extra_body={"pooling": pooling}) for text in TEXTS])
    assert (alone == vectors).all()


def test_ids_and_usage(client, server):
    _, body, _ = server.request("/tokenize", {"prompt": TEXTS[0]})
    ids = json.loads(body)["tokens"]
    answer = client.embeddings.create(model=MODEL, input=ids)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(ids)
    assert answer.data[0].embedding == client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    both = client.embeddings.create(model=MODEL, input=[ids, ids])
    assert both.usage.prompt_tokens == 2 * len(ids) and both.data[0].embedding == both.data[1].embedding


def test_dimensions(client):
    whole, cut = embed(client, input=TEXTS), embed(client, input=TEXTS, dimensions=64)
    expected = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-7)


def test_base64_is_of_float32(server):
    _, body, _ = server.request("/v1/embeddings", {"input": "x", "encoding_format": "base64", "dimensions": 3})
    (entry,) = json.loads(body)["data"]
    assert np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").shape == (3,)


def test_beside_generations_and_after_them(client):
    """The prompt is in the prefix cache, and its neighbours generate: the same vector."""
    text = " ".join(TEXTS * 8)
    cold = embed(client, input=text)
    chat = {"model": MODEL, "prompt": text, "temperature": 0, "max_tokens": 24}
    free = client.completions.create(**chat).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        texts = [pool.submit(lambda: client.completions.create(**chat).choices[0].text) for _ in range(3)]
        vectors = [pool.submit(embed, client, input=text) for _ in range(3)]
        assert all((each.result() == cold).all() for each in vectors)
        assert [each.result() for each in texts] == [free] * 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "word " * 9000}, "input"),
        ({"input": [10**6]}, "input"),
        ({"dimensions": 577}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"stream": True}, "stream"),
        ({}, "input"),
    ],
)
def test_bad_requests_are_named(server, fields, param):
    body = fields if not fields or "input" in fields else {"input": "x", **fields}
    status, answer, _ = server.request("/v1/embeddings", body)
    assert status == 400 and json.loads(answer)["error"]["param"] == param


def test_a_model_that_is_not_served(client):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="x")
