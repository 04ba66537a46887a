"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response

from server.openai.generate import generate
from server.openai.responses import ChatShapes
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("chat", __name__)

    @routes.post("/v1/chat/completions")
    def create() -> Response:
        current = service()
        return generate(current, current.text.chat, ChatShapes)

    return routes
