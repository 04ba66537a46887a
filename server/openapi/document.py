"""The document itself, put together from the app's routes (OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from flask import Flask
from werkzeug.routing import Rule

from pyengine import __version__
from server.openapi import answers
from server.openapi.operations import OPERATIONS, Operation
from server.openapi.requests import schema_of

VERSION = "3.1.0"
DIALECT = "https://spec.openapis.org/oas/3.1/dialect/base"
SECURITY = [{"bearer": []}, {"x_api_key": []}]
_REF = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"<(?:[a-z]+:)?(\w+)>")
_REASONS = {
    400: "A field is wrong; the error names it",
    401: "No API key, or an unknown one",
    403: "This Host or Origin may not use the server",
    404: "No such model",
    413: "The body is too large",
    415: "The body is no JSON",
    429: "The queue is full; Retry-After says when to come back",
    500: "The generation failed",
    503: "The model is not ready, or the server is stopping",
}


def make_document(
    app: Flask, open_endpoints: frozenset[str], has_keys: bool, takes_unknown: bool, models: Sequence[str] = ()
) -> dict[str, Any]:
    """The OpenAPI document of an app.

    Args:
        open_endpoints: those that need no API key; asked only when ``has_keys``.
        takes_unknown: whether unknown fields are ignored, see --unknown-fields.
        models: served names, where they are known already.
    """
    paths: dict[str, dict[str, Any]] = {}
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if "//" in rule.rule:  # another spelling of a route
            continue
        operation = OPERATIONS.get(rule.endpoint, Operation(rule.endpoint))
        needs_key = has_keys and rule.endpoint not in open_endpoints
        item = paths.setdefault(_VARIABLE.sub(r"{\1}", rule.rule), {})
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"}):
            item[method.lower()] = _operation(rule, method, operation, needs_key)
    return {
        "openapi": VERSION,
        "info": {
            "title": "pyengine",
            "version": __version__,
            "summary": "OpenAI's API, with the extra fields that vLLM's users know, and Anthropic's Messages API",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": DIALECT,
        "paths": paths,
        "components": {"schemas": _schemas(takes_unknown, models), "securitySchemes": _security_schemes()},
    }


def _security_schemes() -> dict[str, Any]:
    """One key, sent in either of two ways."""
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key, as OpenAI's clients send it"},
        "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "As Anthropic's do"},
    }


def _schemas(takes_unknown: bool, models: Sequence[str]) -> dict[str, Any]:
    operations = OPERATIONS.values()
    bodies = [each.body for each in operations if each.body is not None]
    shapes = [shape for each in operations for shape in (each.answer, each.event, each.error)]
    structs = [answers.Error, *(shape for shape in shapes if isinstance(shape, type))]
    _, schemas = msgspec.json.schema_components(structs, ref_template=_REF)
    return {**schemas, **{body.__name__: schema_of(body, takes_unknown, models) for body in bodies}}


def _operation(rule: Rule, method: str, operation: Operation, needs_key: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "operationId": f"{rule.endpoint}" if method in ("GET", "POST") else f"{rule.endpoint}.{method.lower()}",
        "summary": operation.summary,
        "tags": [rule.endpoint.split(".", 1)[0]],
        "responses": _responses(operation, needs_key),
        "security": SECURITY if needs_key else [],
    }
    names = _VARIABLE.findall(rule.rule)
    if names:
        out["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    return out


def _responses(operation: Operation, needs_key: bool) -> dict[str, Any]:
    statuses = {*operation.statuses, *((401,) if needs_key else ())}
    failures = {str(status): _failure(operation, _REASONS[status]) for status in sorted(statuses)}
    return {"200": _success(operation), **failures, "default": _failure(operation, "Any other failure")}


def _failure(operation: Operation, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(operation.error)}}}


def _success(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "Success"}
    if isinstance(operation.answer, str):
        kind = {} if operation.answer == "application/json" else {"type": "string"}
        return {"description": "Success", "content": {operation.answer: {"schema": kind}}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(operation.answer)}}
    description = "Success"
    if operation.event is not None:
        name = operation.event.__name__
        description = f"An object, or with stream: true server-sent events, each with a {name} as data"
        # No schema: tools disagree whether it is of the body, a string, or of each event, an object.
        content["text/event-stream"] = {"schema": {}, "x-event-data": _ref(operation.event)}
    return {"description": description, "content": content}


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=struct.__name__)}
