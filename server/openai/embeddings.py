"""``POST /v1/embeddings``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from flask import Blueprint, Response, request

from pyengine import embeddings
from pyengine.text.fields import EmbeddingRequest
from server.access import salted
from server.answer import Answer
from server.http import SOCKET_KEY, ClientWatch
from server.openai.generate import read_body, wait_for
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("embeddings", __name__)

    @routes.post("/v1/embeddings")
    def create() -> Response:
        current = service()
        asked, prepared = current.prepare(current.text.embeddings, read_body())
        answer = current.answer(salted(prepared))
        wait_for(answer, ClientWatch(request.environ.get(SOCKET_KEY), answer.client_gone))
        body = msgspec.json.encode(_whole(current.model_name, asked, answer))
        return Response(body, mimetype="application/json")

    return routes


def _whole(model: str, asked: EmbeddingRequest, answer: Answer) -> dict:
    """OpenAI's list of embeddings, in the order of the input."""
    vectors = [embeddings.finish(each.embedding, asked.dimensions) for each in answer.generations]
    encode = embeddings.to_base64 if asked.encoding_format == "base64" else lambda vector: vector.tolist()
    num_tokens = answer.prepared.num_prompt_tokens
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": encode(each)} for i, each in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
