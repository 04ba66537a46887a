"""Routes for operators: is it alive, may it be sent work, which version, what does it count."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from pyengine import __version__
from server.openai.error_shapes import error_body
from server.service import Service
from server.state import ServerState


def make_blueprint(state: ServerState, service: Callable[[], Service | None]) -> Blueprint:
    """/health: the process answers. /ready: it takes requests. /version, /metrics (Prometheus text)."""
    routes = Blueprint("ops", __name__)

    @routes.get("/health")
    def health() -> Response:
        return Response(status=200, mimetype="text/plain")

    @routes.get("/ready")
    def ready() -> tuple[Response, int]:
        if state.accepts:
            return jsonify(status="ready"), 200
        return jsonify(error_body(state.refusal(), 503)), 503

    @routes.get("/version")
    def version() -> Response:
        return jsonify(version=__version__)

    @routes.get("/metrics")
    def metrics() -> Response:
        current = service()
        text = current.metrics.render() if current else b""
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
