"""Every failure in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, whatever route, method or body
it was.
"""

from __future__ import annotations

import json
import sys
import traceback

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from pyengine.admission import QueueFull
from pyengine.errors import RequestError
from server.anthropic.shapes import error_body as anthropic_error_body
from server.engine_client import EngineDead, SequenceFailed
from server.openai.error_shapes import error_body
from server.request_id import ENVIRON_KEY
from server.state import ServerStopping

CLIENT_GONE = "499 Client Closed Request"  # nginx's; never sent, but in the access log


def body_of(error: BaseException) -> tuple[dict, int]:
    """The body and HTTP status for an exception that a route or a stream ended with."""
    if isinstance(error, RequestError):
        return error_body(error.message, error.status, error.param, error.code), error.status
    if isinstance(error, (EngineDead, ServerStopping)):
        return error_body(str(error), 503), 503
    if isinstance(error, SequenceFailed):
        return error_body(str(error), 500), 500
    return error_body("internal error; the server's log has the details", 500), 500


def log_bug(error: BaseException, request_id: str) -> None:
    """What clients are not told: the traceback of an exception that is nobody's fault but ours."""
    if not isinstance(error, (RequestError, EngineDead, ServerStopping, SequenceFailed, ConnectionError)):
        print(f"pyengine: request {request_id} failed", file=sys.stderr)
        traceback.print_exception(error)


def _response(body: dict, status: int) -> Response:
    """The body as JSON, for Anthropic's routes in Anthropic's shape."""
    if request.path.startswith("/v1/messages"):
        body = anthropic_error_body(body["error"]["message"], status)
    return Response(json.dumps(body), status, mimetype="application/json")


def error_response(error: BaseException) -> Response:
    body, status = body_of(error)
    response = _response(body, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="pyengine"'
    if status in (429, 503):
        response.headers["Retry-After"] = f"{error.retry_after_s:.0f}" if isinstance(error, QueueFull) else "1"
    return response


def install(app: Flask) -> None:
    """Register the handlers; nothing reaches a client as HTML."""
    routes = {rule.rule for rule in app.url_map.iter_rules() if "//" not in rule.rule}

    @app.errorhandler(ConnectionError)
    def on_client_gone(_: ConnectionError) -> Response:
        return Response(status=CLIENT_GONE)

    @app.errorhandler(RequestError)
    @app.errorhandler(EngineDead)
    @app.errorhandler(ServerStopping)
    @app.errorhandler(SequenceFailed)
    def on_known(error: Exception) -> Response:
        return error_response(error)

    @app.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        text = error.description or error.name
        if isinstance(error, NotFound):
            text = f"no such route; this server has {', '.join(sorted(routes))}"
        elif isinstance(error, MethodNotAllowed):
            text = f"this route takes {', '.join(sorted(set(error.valid_methods or ()) - {'HEAD', 'OPTIONS'}))}"
        response = _response(error_body(text, error.code or 500), error.code or 500)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(error.valid_methods)
        return response

    @app.errorhandler(Exception)
    def on_bug(error: Exception) -> Response:
        log_bug(error, request.environ.get(ENVIRON_KEY, "-"))
        return error_response(error)
