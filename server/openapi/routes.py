"""``GET /openapi.json``."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response, current_app

from server.access import Access
from server.config import ServerConfig
from server.openapi.document import make_document


def make_blueprint(access: Access, config: ServerConfig) -> Blueprint:
    """The document is made when it is first asked for, and kept."""
    routes = Blueprint("openapi", __name__)
    made: list[bytes] = []

    @routes.get("/openapi.json")
    def document() -> Response:
        if not made:
            takes_unknown = config.unknown_fields == "warn"
            made.append(
                msgspec.json.encode(
                    make_document(current_app, access.open_endpoints, access.needs_keys, takes_unknown)
                )
            )
        return Response(made[0], mimetype="application/json")

    return routes
