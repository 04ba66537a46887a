"""``POST /tokenize`` and ``/detokenize``: what the model sees of a text, and the text of ids, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from flask import Blueprint, Response

from server.openai.generate import read_body
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("tokenize", __name__)

    @routes.post("/tokenize")
    def tokenize() -> Response:
        current = service()
        ids, texts = current.prepare(current.text.tokenize, read_body())
        return _json(
            {
                "count": len(ids),
                "max_model_len": current.text.limits.max_model_len,
                "tokens": ids,
                "token_strs": texts,
            }
        )

    @routes.post("/detokenize")
    def detokenize() -> Response:
        current = service()
        return _json({"prompt": current.prepare(current.text.detokenize, read_body())})

    return routes


def _json(answer: dict) -> Response:
    return Response(msgspec.json.encode(answer), mimetype="application/json")
