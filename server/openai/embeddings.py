"""``POST /v1/embeddings``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from server.access import salted
from server.http import SOCKET_KEY, ClientWatch
from server.openai.embedding_shapes import embedding_list
from server.openai.generate import read_body, wait_for
from server.service import Service
from server.threads import computed

LARGE_BATCH = 32  # vectors: beyond it they are written where no stream waits for it


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("embeddings", __name__)

    @routes.post("/v1/embeddings")
    def create() -> Response:
        current = service()
        asked, prepared = current.prepare(current.text.embeddings, read_body())
        answer = current.answer(salted(prepared))
        wait_for(answer, ClientWatch(request.environ.get(SOCKET_KEY), answer.client_gone))
        arguments = (current.model_name, asked, answer.generations, answer.prepared.num_prompt_tokens)
        body = computed(len(answer.generations) > LARGE_BATCH, _encoded, *arguments)
        return Response(body, mimetype="application/json")

    return routes


def _encoded(*arguments: Any) -> bytes:
    return msgspec.json.encode(embedding_list(*arguments))
