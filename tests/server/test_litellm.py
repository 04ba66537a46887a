"""LiteLLM, as a library and as a proxy in front of the server: keys and budgets there, tokens here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest

if find_spec("litellm") is None or find_spec("fastapi") is None:
    pytest.skip("litellm's proxy is not installed (pip install '.[clients]')", allow_module_level=True)

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "DO_NOT_TRACK": "1"}
START_TIMEOUT_S = 120
PROXY_KEY = "sk-of-the-proxy"


@pytest.fixture(scope="module")
def litellm():
    os.environ.update(OFFLINE)
    import litellm

    return litellm


@pytest.fixture(scope="module")
def proxy(tool_server, tmp_path_factory):
    """The proxy's URL. It knows pyengine's key; its own clients know only the proxy's."""
    folder = tmp_path_factory.mktemp("litellm")
    params = {"model": f"openai/{MODEL}", "api_base": f"{tool_server.url}/v1", "api_key": tool_server.key}
    config = {
        "model_list": [{"model_name": "small", "litellm_params": params}],
        "general_settings": {"master_key": PROXY_KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [*command, "--port", str(port)], cwd=folder, stdout=log, stderr=log, env={**os.environ, **OFFLINE}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)


def test_the_library_plain_streamed_and_with_tools(litellm, tool_server):
    ask = {
        "model": f"openai/{MODEL}",
        "api_base": f"{tool_server.url}/v1",
        "api_key": tool_server.key,
        "messages": FRANCE,
        "temperature": 0,
        "max_tokens": 100,
    }
    plain = litellm.completion(**ask)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True))
    assert "Paris" in plain.choices[0].message.content == streamed and plain.choices[0].finish_reason == "stop"
    (call,) = litellm.completion(**ask, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Paris")
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**{**ask, "temperature": 101})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**ask, "api_key": "sk-wrong"})


def test_through_the_proxy_plain_and_streamed(proxy):
    client = openai.OpenAI(base_url=proxy, api_key=PROXY_KEY, max_retries=0, timeout=120)
    ask = {"model": "small", "messages": FRANCE, "temperature": 0, "max_tokens": 40}
    plain = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in plain.choices[0].message.content == text
    assert plain.usage.completion_tokens == chunks[-1].usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**{**ask, "temperature": 101})


def test_the_proxys_key_is_asked_for(proxy):
    with pytest.raises(openai.APIStatusError):  # without a database it looks unknown keys up in, it says 400
        openai.OpenAI(base_url=proxy, api_key="sk-wrong", max_retries=0).chat.completions.create(
            model="small", messages=FRANCE
        )
