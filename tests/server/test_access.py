"""Who may ask: keys on every route but the open ones, Host names, web origins, a cache that tells nothing."""

from __future__ import annotations

import json

import openai
import pytest
from flask import Flask

from pyengine.errors import ConfigError
from pyengine.protocol import Progress
from server.access import OPEN_ENDPOINTS, ApiKeys, HostNames, all_keys, notes
from server.app import create_app
from server.cli import API_KEY_VARIABLE, parse
from server.config import ServerConfig
from server.openai.errors import error_response
from server.state import ServerState

KEYS = ("sk-first", "sk-second")
LONG = "The history of the sea is long. " * 20


def make_client(**options):
    state = ServerState()
    state.progress = Progress("loading weights", 0.5)
    app = create_app(state, lambda: None, ServerConfig(**options))
    return app, app.test_client()


@pytest.fixture(scope="module")
def guarded():
    return make_client(api_key=KEYS)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---------------------------------------------------------------------- keys


def test_every_route_needs_a_key_but_the_open_ones(guarded):
    app, client = guarded
    seen = set()
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<path:name>", "x")
        assert "<" not in path
        for method in rule.methods:
            status = client.open(path, method=method).status_code
            assert (status == 401) == (rule.endpoint not in OPEN_ENDPOINTS), (method, path, status)
        seen.add(rule.endpoint)
    assert seen > OPEN_ENDPOINTS and "ops.metrics" in seen


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1//models",
        "/v1/models/",
        "/v1/../v1/models",
        "/./health/x",
        "/health/",
        "/HEALTH",
        "/%2e/metrics",
    ],
)
def test_odd_paths_need_a_key_too(guarded, path):
    _, client = guarded
    response = client.get(path)
    assert response.status_code == 401
    assert set(response.get_json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("host", ["localhost/health", "localhost/health?", "127.0.0.1#/health"])
def test_an_odd_host_opens_nothing(guarded, host):
    _, client = guarded
    assert client.get("/metrics", headers={"Host": host}).status_code in (401, 403)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_as_bearer_token_and_as_api_key(guarded, key):
    _, client = guarded
    for headers in (bearer(key), {"Authorization": f"bearer  {key} "}, {"X-Api-Key": key}):
        assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        *({}, bearer(""), bearer("sk-firs"), bearer("sk-first2"), bearer("SK-FIRST"), bearer("sk-first,sk-second")),
        *(bearer("\xe9"), {"Authorization": "Basic sk-first"}, {"Authorization": "sk-first"}, {"X-Api-Key": "x"}),
    ],
)
def test_other_keys_do_not(guarded, headers):
    _, client = guarded
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == 401 and "sk-" not in response.get_data(as_text=True)
    assert response.get_json()["error"]["code"] in ("missing_api_key", "invalid_api_key")


def test_metrics_are_open_when_asked():
    _, client = make_client(api_key=KEYS, public_metrics=True)
    assert client.get("/metrics").status_code == 200 and client.get("/v1/models").status_code == 401


def test_without_keys_everything_is_open():
    _, client = make_client()
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/models").status_code == 503  # the model is not ready


def test_a_key_is_found_among_all():
    keys = ApiKeys(["a", "b", "a", "ü"])
    assert keys.find("a") and keys.find("ü") and keys.find("a") != keys.find("b")
    assert keys.find("") is None and keys.find("c") is None and keys.find("\ud800") is None
    assert not ApiKeys([])


def test_keys_come_from_options_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\n  also-from-file  \n")
    monkeypatch.setenv(API_KEY_VARIABLE, "from-environment")
    config, _ = parse(["--api-key", "one", "--api-key", "two", "--api-key-file", str(file)])
    assert all_keys(config) == ["one", "two", "from-environment", "from-file", "also-from-file"]
    assert "two" not in repr(config) and "from-environment" not in repr(config)
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert all_keys(parse([])[0]) == []


@pytest.mark.parametrize(
    "text, match", [("", "no key"), ("# none\n", "no key"), ("two words", "printable"), (None, "No such file")]
)
def test_bad_keys_are_errors_of_one_line(tmp_path, text, match):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        all_keys(ServerConfig(api_key_file=str(file)))
    assert "two words" not in str(caught.value)
    with pytest.raises(ConfigError, match="printable"):
        make_client(api_key=("",))


def test_a_server_open_to_the_network_without_a_key_says_so():
    assert notes(ServerConfig(host="0.0.0.0")) and notes(ServerConfig(host="::"))
    assert not notes(ServerConfig(host="0.0.0.0", api_key=("k",))) and not notes(ServerConfig())


# ---------------------------------------------------------------------- Host


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:8000", "127.8.9.1", "[::1]:80", "[::1]", None]
)
def test_loopback_is_called_by_its_names(host):
    assert HostNames("127.0.0.1", ()).allow(host)


FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "0.0.0.0", "10.0.0.1", "", "[::1", "::1"]
ODD = ["localhost@evil.example", "evil.example\\@localhost", "evil.example@localhost", "localhost/x", "localhost:x"]


@pytest.mark.parametrize("host", [*FOREIGN, *ODD])
def test_loopback_is_not_called_anything_else(host):
    assert not HostNames("127.0.0.1", ()).allow(host)


def test_host_names_elsewhere():
    assert HostNames("0.0.0.0", ()).allow("anything.example")
    listed = HostNames("0.0.0.0", ("llm.example",))
    assert listed.allow("llm.example:80") and not listed.allow("other.example")
    assert HostNames("127.0.0.1", ("llm.example",)).allow("LLM.example")


def test_a_foreign_host_is_refused():
    _, client = make_client()
    response = client.get("/health", headers={"Host": "rebound.example:8000"})
    assert response.status_code == 403 and "--allowed-host" in response.get_json()["error"]["message"]


# ---------------------------------------------------------------------- Origin

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}
PAGE = "https://chat.example.org"


def cors_headers(response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control")}


def test_no_origin_is_allowed_by_default():
    _, client = make_client()
    for origin in (PAGE, "null", "http://localhost:3000"):
        for response in (
            client.get("/v1/models", headers={"Origin": origin}),
            client.options("/v1/chat/completions", headers={"Origin": origin, **PREFLIGHT}),
        ):
            assert response.status_code == 403 and not cors_headers(response)
    assert client.get("/health", headers={"Origin": "http://localhost"}).status_code == 200  # our own


def test_an_allowed_origin_gets_its_preflight_without_a_key_and_its_answers_with_one():
    _, client = make_client(api_key=KEYS, allowed_origin=(PAGE,))
    preflight = client.options("/v1/chat/completions", headers={"Origin": PAGE, **PREFLIGHT})
    assert preflight.status_code == 204 and preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"
    refused = client.get("/v1/models", headers={"Origin": PAGE})
    assert refused.status_code == 401 and refused.headers["Access-Control-Allow-Origin"] == PAGE
    answer = client.get("/metrics", headers={"Origin": PAGE, **bearer(KEYS[0])})
    assert answer.status_code == 200 and answer.headers["Vary"] == "Origin"
    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
    assert client.get("/metrics", headers={"Origin": PAGE + ".evil", **bearer(KEYS[0])}).status_code == 403
    assert not cors_headers(client.get("/metrics", headers=bearer(KEYS[0])))


def test_all_origins():
    _, client = make_client(allowed_origin=("*",))
    assert client.get("/health", headers={"Origin": "null"}).headers["Access-Control-Allow-Origin"] == "null"


def test_errors_of_the_application_itself_are_hidden():
    with Flask("any").test_request_context("/v1/models"):
        response = error_response(RuntimeError("/secret/path"))
    assert response.status_code == 500 and "secret" not in response.get_data(as_text=True)


# ---------------------------------------------------------------------- a running server


def test_openai_client_with_and_without_the_key(strict_server):
    for key, ok in ((strict_server.keys[0], True), ("sk-wrong", False)):
        client = openai.OpenAI(base_url=f"{strict_server.url}/v1", api_key=key, max_retries=0)
        if ok:
            assert client.models.list().data
        else:
            with pytest.raises(openai.AuthenticationError, match="not known"):
                client.models.list()


def test_no_key_sees_what_another_has_cached(strict_server):
    def num_cached(key: str, **more) -> int:
        body = {"prompt": LONG, "max_tokens": 1, "temperature": 0, **more}
        status, answer, _ = strict_server.request("/v1/completions", body, bearer(key))
        assert status == 200, answer
        return json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]

    first, second = strict_server.keys
    assert num_cached(first) == 0
    assert num_cached(first) > 100
    assert num_cached(second) == 0
    assert num_cached(second) > 100
    assert num_cached(second, cache_salt="of one user") == 0


def test_request_ids_are_in_answers_and_log_lines(strict_server):
    _, _, headers = strict_server.request(
        "/v1/models", headers={"X-Request-Id": "trace-7", **bearer(strict_server.keys[0])}
    )
    assert headers["X-Request-Id"] == "trace-7"

    def logged() -> bool:
        return any("trace-7" in line and "GET /v1/models" in line for line in strict_server.log().splitlines())

    strict_server.wait_until(logged, 5, "logging")
    assert strict_server.keys[0] not in strict_server.log()
