"""``GET /v1/models`` and ``/v1/models/{id}``."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from pyengine.errors import RequestError
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("models", __name__)

    @routes.get("/v1/models")
    def list_models() -> Response:
        return jsonify(object="list", data=[service().model_card()])

    @routes.get("/v1/models//<path:name>", defaults={"root": "/"})  # a model named by its folder
    @routes.get("/v1/models/<path:name>", defaults={"root": ""})
    def get_model(name: str, root: str) -> Response:
        name = root + name
        card = service().model_card()
        if name != card["id"]:
            raise RequestError(
                f"The model `{name[:200]}` does not exist; this server has `{card['id']}`",
                status=404,
                param="model",
                code="model_not_found",
            )
        return jsonify(card)

    return routes
