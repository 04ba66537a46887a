"""The OpenAPI document: valid, complete, and equal to what the validators do."""

from __future__ import annotations

import re
from types import SimpleNamespace
from urllib.parse import quote

import msgspec
import pytest

from pyengine.sampling_params import RANGES, SamplingParams
from server.app import create_app
from server.config import ServerConfig
from server.openapi.operations import OPERATIONS
from server.openapi.requests import TABLES
from server.state import ServerState

validator = pytest.importorskip("openapi_spec_validator")


def document(**options) -> dict:
    app = create_app(ServerState(), lambda: None, ServerConfig(**options))
    answer = app.test_client().get("/openapi.json", headers={"Authorization": "Bearer sk-1"})
    assert answer.status_code == 200 and answer.mimetype == "application/json"
    return answer.get_json()


def test_it_is_a_valid_openapi_document():
    for options in ({}, {"api_key": ("sk-1",)}, {"unknown_fields": "warn"}):
        validator.validate(document(**options))


def test_every_route_is_in_it_with_words():
    app = create_app(ServerState(), lambda: None, ServerConfig())
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower()): rule.endpoint
        for rule in app.url_map.iter_rules()
        if "//" not in rule.rule  # another spelling
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert described == set(routes)
    assert set(routes.values()) == set(OPERATIONS)


@pytest.mark.parametrize("name", ["small", "org/small", "/models/small"])
def test_a_model_is_found_by_the_name_that_is_listed(name):
    state, service = ServerState(), SimpleNamespace(model_card=lambda: {"id": name})
    state.ready = object()
    client = create_app(state, lambda: service, ServerConfig()).test_client()
    for path in (name, quote(name, safe="")):
        assert client.get(f"/v1/models/{path}").get_json() == {"id": name}
    missing = client.get(f"/v1/models/{name}s")
    assert missing.status_code == 404 and missing.get_json()["error"]["code"] == "model_not_found"


def test_every_field_is_in_it():
    schemas = document()["components"]["schemas"]
    for struct, (refused, ignored) in TABLES.items():
        names = {field.name for field in msgspec.structs.fields(struct)} | set(refused) | set(ignored)
        assert set(schemas[struct.__name__]["properties"]) == names
        assert schemas[struct.__name__]["additionalProperties"] is False
    assert document(unknown_fields="warn")["components"]["schemas"]["ChatRequest"]["additionalProperties"] is True


@pytest.mark.parametrize("name", [name for name in RANGES if name != "max_tokens"])
def test_ranges_are_those_that_are_checked(name):
    schema = document()["components"]["schemas"]["CompletionRequest"]["properties"][name]
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema["maximum"]
    SamplingParams(**{name: high})
    step = 1 if "integer" in schema["type"] else 1e-6
    for wrong in (high + step, low - step):
        with pytest.raises(Exception, match=name):
            SamplingParams(**{name: wrong})


def test_only_open_routes_go_without_a_key():
    paths = document(api_key=("sk-1",))["paths"]
    free = {path for path, item in paths.items() for operation in item.values() if not operation["security"]}
    assert free == {"/health", "/ready", "/version"}
    assert "401" in paths["/metrics"]["get"]["responses"]
    free = {path for path, item in document()["paths"].items() if all(not each["security"] for each in item.values())}
    assert free == set(paths)
    app = create_app(ServerState(), lambda: None, ServerConfig(api_key=("sk-1",)))
    assert app.test_client().get("/openapi.json").status_code == 401
