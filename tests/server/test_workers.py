"""Several API workers on one port: they count together, are replaced, finish what they run, and leave nobody behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from running_server import ROOT, RunningServer

SHORT = {"prompt": "Once upon a time", "max_tokens": 3, "ignore_eos": True, "temperature": 0}
LONG = {**SHORT, "max_tokens": 4000, "stream": True}


@pytest.fixture(scope="module")
def workers_server():
    with RunningServer("--api-workers", "2") as server:
        assert all(_ready(server) for _ in range(10))  # whoever is reached
        yield server


def _ready(server) -> bool:
    return server.request("/ready")[0] == 200


def _children(pid: int) -> dict[int, bytes]:
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(each): Path(f"/proc/{each}/cmdline").read_bytes() for each in pids}


def _worker_pids(server) -> list[int]:
    return [pid for pid, command in _children(server.process.pid).items() if b"server.worker" in command]


def _new(server, pids: list[int]) -> set[int]:
    return set(_worker_pids(server)) - set(pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _open(server, body: dict) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def _num_sockets(pid: int) -> int:
    """Established connections of a worker to clients."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


def test_whoever_is_asked_counts_for_all(workers_server):
    server = workers_server
    before = server.metric("vllm:request_success_total")
    for _ in range(12):
        assert server.request("/v1/completions", SHORT)[0] == 200
    for _ in range(8):
        assert server.metric("vllm:request_success_total") == before + 12
        assert server.metric("vllm:e2e_request_latency_seconds_count") == before + 12
    server.wait_until(lambda: server.metric("vllm:generation_tokens_total") >= 36, 5, "telling the engine's totals")
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "done")


def test_connections_are_shared_out(workers_server):
    server = workers_server
    pids = _worker_pids(server)
    before = {pid: _num_sockets(pid) for pid in pids}
    with ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(closing(socket.create_connection(urlsplit(server.url).netloc.split(":"), timeout=5)))
            time.sleep(0.01)
        time.sleep(0.3)
        shares = [_num_sockets(pid) - before[pid] for pid in pids]
    assert min(shares) >= 8, shares


def test_a_dead_worker_is_replaced_and_its_requests_are_forgotten(workers_server):
    server = workers_server
    pids = _worker_pids(server)
    counted = server.metric("vllm:request_success_total")
    with ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(closing(_open(server, LONG)))
            assert connection.getresponse().readline().startswith(b"data: ")
        assert server.metric("vllm:num_requests_running") > 0
        os.kill(pids[0], signal.SIGKILL)
        assert all(_ready(server) for _ in range(5))
        server.wait_until(lambda: len(_new(server, pids)) == 1, 10, "with a new worker")
        assert all(_ready(server) for _ in range(20))  # it takes part only when it is ready
        os.kill(pids[1], signal.SIGKILL)
    server.wait_until(lambda: len(_new(server, pids)) == 2, 10, "with two new workers")
    assert all(_ready(server) for _ in range(10))  # at the latest when there is somebody to answer
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "rid of their requests")
    assert server.request("/v1/completions", SHORT)[0] == 200
    assert server.metric("vllm:request_success_total") >= counted + 1
    server.wait_until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, 5, "free of their blocks")


def test_a_dead_engine_is_an_error_event_and_a_new_engine(workers_server):
    server = workers_server
    generated = server.metric("vllm:generation_tokens_total")
    connection = _open(server, LONG)
    response = connection.getresponse()
    response.readline()
    os.kill(server.engine_pid(), signal.SIGKILL)
    rest = response.read()
    assert b'"code":503' in rest and rest.endswith(b"data: [DONE]\n\n")
    connection.close()
    server.wait_until(lambda: all(_ready(server) for _ in range(10)), 60, "ready again")
    assert server.request("/v1/completions", SHORT)[0] == 200
    assert server.metric("vllm:generation_tokens_total") >= generated


def test_the_queue_has_one_owner():
    flags = ["--api-workers", "2", "--max-num-seqs", "2", "--max-queued-requests", "4"]
    with RunningServer(*flags) as server, ExitStack() as stack:
        statuses = []
        for _ in range(16):
            # The echo is an answer's first event, also while it waits in the queue.
            connection = stack.enter_context(closing(_open(server, {**LONG, "echo": True})))
            statuses.append(connection.getresponse().status)
            time.sleep(0.05)
        assert statuses.count(200) in (6, 7)  # two run, four wait; perhaps one more before the second ran
        assert set(statuses) == {200, 429}
        assert server.metric("vllm:admission_rejections_total") == statuses.count(429)


def test_sigterm_lets_all_workers_finish():
    with RunningServer("--api-workers", "2") as server, ExitStack() as stack:
        pids = [*_children(server.process.pid)]
        responses = []
        for _ in range(8):
            connection = stack.enter_context(closing(_open(server, {**LONG, "max_tokens": 60})))
            responses.append(connection.getresponse())
        server.process.send_signal(signal.SIGTERM)
        for response in responses:
            events = response.read()
            assert events.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in events
        assert server.process.wait(30) == 0
        assert not any(map(_alive, pids))


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_is_left_behind(sign):
    with RunningServer("--api-workers", "3") as server:
        pids = [*_children(server.process.pid)]
        assert len(pids) == 4
        server.process.send_signal(sign)
        server.process.wait(30)
        deadline = time.monotonic() + 5
        while any(map(_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(_alive, pids))


def test_a_taken_port_is_an_error():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        command = [sys.executable, "-m", "server", "--api-workers", "2", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr and done.stderr.count("\n") == 1


def test_a_template_that_is_not_there_ends_the_server():
    command = [sys.executable, "-m", "server", "--api-workers", "2", "--port", "0", "--chat-template", "/nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "/nowhere" in done.stderr and "Traceback" not in done.stderr
