"""``POST /v1/embeddings``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from flask import Blueprint, Response, request

from server.access import salted
from server.http import SOCKET_KEY, ClientWatch
from server.openai.embedding_shapes import embedding_list
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
        whole = embedding_list(current.model_name, asked, answer.generations, answer.prepared.num_prompt_tokens)
        return Response(msgspec.json.encode(whole), mimetype="application/json")

    return routes
