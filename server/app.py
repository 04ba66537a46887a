"""The Flask application: blueprints and error handlers, put together around a service that exists once the engine is
ready.
"""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, Response

from pyengine.errors import RequestError
from server import dashboard, ignored_fields, ops
from server.access import Access
from server.anthropic import messages
from server.config import ServerConfig
from server.openai import chat, completions, embeddings, errors, models, response_routes, tokenize
from server.openapi import routes as openapi
from server.service import Service
from server.state import ServerState


def create_app(state: ServerState, service: Callable[[], Service | None], config: ServerConfig) -> Flask:
    """The WSGI application.

    Args:
        state: asked before every request that needs the engine.
        service: the text side of the served model; None until the first engine is ready.
    """
    app = Flask("pyengine", static_folder=None)
    app.json.sort_keys = False
    app.url_map.merge_slashes = False  # a path with a slash too many is no route, rather than a redirect

    def ready_service() -> Service:
        if not state.accepts:
            raise RequestError(state.refusal(), status=503)
        return service()

    app.register_blueprint(ops.make_blueprint(state, service))
    app.register_blueprint(dashboard.make_blueprint())
    for resource in (chat, completions, embeddings, models, tokenize, messages, response_routes):
        app.register_blueprint(resource.make_blueprint(ready_service))
    access = Access(config)
    app.register_blueprint(openapi.make_blueprint(access, config, service))
    errors.install(app)
    access.install(app)
    ignored_fields.install(app)

    @app.after_request
    def end_connections(response: Response) -> Response:
        """A server that is stopping keeps no connection for later."""
        if state.draining:
            response.headers["Connection"] = "close"
        return response

    return app
