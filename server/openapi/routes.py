"""``GET /openapi.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from flask import Blueprint, Response, current_app

from server.access import Access
from server.config import ServerConfig
from server.openapi.document import make_document
from server.service import Service


def make_blueprint(access: Access, config: ServerConfig, service: Callable[[], Service | None]) -> Blueprint:
    """The document is made when it is first asked for, and again once the model's name is known."""
    routes = Blueprint("openapi", __name__)
    made: dict[Sequence[str], bytes] = {}

    @routes.get("/openapi.json")
    def document() -> Response:
        current = service()
        names = current.text.served_names if current is not None else ()
        if names not in made:
            lenient = config.unknown_fields == "warn"
            content = make_document(current_app, access.open_endpoints, access.needs_keys, lenient, names)
            made[names] = msgspec.json.encode(content)
        return Response(made[names], mimetype="application/json")

    return routes
