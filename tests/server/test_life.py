"""Starting, leaving, dying, stopping: what happens around the requests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from raw_http import Raw, post
from running_server import ROOT, RunningServer

LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


def _open(server, body: dict) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def _used(server) -> float:
    return server.metric("vllm:kv_cache_usage_perc")


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "plain"])
def test_a_client_that_leaves_frees_its_blocks_within_a_second(server, stream):
    connection = _open(server, {**LONG, "stream": stream, "n": 2})
    if stream:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
    server.wait_until(lambda: _used(server) > 0, 20, "using blocks")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    server.wait_until(lambda: _used(server) == 0 and server.metric("vllm:num_requests_running") == 0, 1.5, "free again")


def test_a_queued_client_that_leaves_is_forgotten(server):
    crowd = [_open(server, {**LONG, "n": 32, "stream": True}) for _ in range(2)]
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") > 0, 30, "queueing")
    queued = _open(server, {**LONG, "stream": False})
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") >= 33, 20, "queueing the last one")
    queued.close()
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 32, 5, "rid of the queued one")
    for connection in crowd:
        connection.close()
    server.wait_until(lambda: _used(server) == 0, 10, "free again")


def test_a_dead_engine_is_an_error_event_and_a_new_engine():
    with RunningServer() as server:
        connection = _open(server, {**LONG, "stream": True})
        response = connection.getresponse()
        response.readline()
        os.kill(server.engine_pid(), signal.SIGKILL)
        rest = response.read().decode()
        assert "restarted" in rest and rest.rstrip().endswith("data: [DONE]")
        server.wait_until(lambda: server.request("/ready")[0] == 200, 60, "ready again")
        status, body, _ = server.request("/v1/completions", {"prompt": "The sea is", "max_tokens": 3, "temperature": 0})
        assert status == 200 and json.loads(body)["choices"][0]["text"]
        assert server.request("/health")[0] == 200
        ended = re.findall(r'vllm:request_success_total\{.*finished_reason="(\w+)".*\} 1\b', server.metrics_text())
        assert sorted(ended) == ["error", "length"]


def _posted(body: dict, *headers: str) -> bytes:
    return post("/v1/completions", json.dumps(body).encode(), "Content-Type: application/json", *headers)


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)], ids=str)
def test_a_body_without_a_length_ends_with_its_connection_at_once(server, headers):
    """HTTP/1.0 knows no chunks, and what is left open on an idle server was open for seconds."""
    request = _posted({"prompt": "a", "max_tokens": 2, "stream": True}, *headers).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    with Raw(server.port) as raw:
        begin, answer = time.monotonic(), raw.send(request).rest()
    assert answer.endswith(b"data: [DONE]\n\n") and b"Connection: close" in answer and b"keep-alive" not in answer
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "plain"])
def test_who_hangs_up_on_one_side_is_gone_and_gets_no_500(server, stream):
    with Raw(server.port) as raw:
        raw.send(_posted({**LONG, "stream": stream}))
        server.wait_until(lambda: _used(server) > 0, 20, "using blocks")
        raw.socket.shutdown(socket.SHUT_WR)
        answer = raw.rest()
    assert not answer.startswith(b"HTTP/1.1 5")
    assert not answer.endswith(b"0\r\n\r\n"), "an answer that broke off looks whole"
    server.wait_until(lambda: _used(server) == 0, 5, "free again")


def test_sigterm_lets_running_requests_finish():
    with RunningServer() as server:
        connection = _open(server, {**LONG, "max_tokens": 60, "stream": True})
        response = connection.getresponse()
        response.readline()
        engine = server.engine_pid()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.request("/ready")[0] == 503
        assert server.request("/v1/completions", {"prompt": "x"})[0] == 503
        rest = response.read().decode()
        assert '"finish_reason":"length"' in rest and rest.rstrip().endswith("[DONE]") and "error" not in rest
        assert server.process.wait(15) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)


def test_sigterm_lets_a_request_finish_that_is_still_being_read():
    request = _posted({"prompt": "The sea is", "max_tokens": 3})
    with RunningServer() as server, Raw(server.port) as raw:
        raw.send(request[:-5])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        answer = raw.send(request[-5:]).answer()
        assert answer.status == 200 and json.loads(answer.body)["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(15) == 0


def test_sigterm_ends_what_outlives_the_grace_time_with_an_event():
    with RunningServer("--shutdown-timeout", "0.5") as server:
        response = _open(server, {**LONG, "stream": True}).getresponse()
        response.readline()
        server.process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        assert "shutting down" in rest and rest.rstrip().endswith("[DONE]")
        assert server.process.wait(15) == 0


def test_a_second_sigterm_ends_at_once():
    with RunningServer() as server:
        busy = _open(server, LONG)
        server.wait_until(lambda: _used(server) > 0, 20, "busy")
        engine = server.engine_pid()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(3) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)
        busy.close()


def _run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "server", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_taken_port_is_one_line_and_code_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = _run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot listen" in done.stderr


@pytest.mark.parametrize(
    "flags, code, text",
    [
        (["--model", "/nowhere/model"], 3, "/nowhere/model"),
        (["--kv-cache-memory", "much"], 2, "much"),
        (["--dtype", "int3"], 2, "int3"),
        (["--kv-cache-memory", "900TiB"], 2, "--kv-cache-memory"),
        (["--no-such-flag"], 2, "no-such-flag"),
        (["--port", "70000"], 2, "--port"),
    ],
)
def test_bad_flags_end_with_a_line_and_a_code(flags, code, text):
    done = _run("--port", "0", *flags) if "--port" not in flags else _run(*flags)
    assert done.returncode == code, done.stderr
    assert text in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_truncated_gguf_is_one_line_and_code_3(tmp_path):
    from pyengine.models.resolve import resolve_model

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(resolve_model("smollm2-135m").read_bytes()[:3_000_000])
    done = _run("--port", "0", "--model", str(broken))
    assert done.returncode == 3 and "broken.gguf" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_only_the_api_port_listens(server):
    """No socket of server or engine is open to the network but the API's, and that one only to loopback."""
    pids = {server.process.pid, server.engine_pid()}
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}")
        for pid in pids
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.path.exists(f"/proc/{pid}/fd/{fd}")
    }
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(table).read().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.append(fields[1])
    port = f"{urlsplit(server.url).port:04X}"
    assert listening == [f"0100007F:{port}"]


def test_help_teaches():
    done = _run("--help")
    assert done.returncode == 0 and "--max-model-len" in done.stdout and "examples:" in done.stdout
