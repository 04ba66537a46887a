"""A long prompt is parsed and tokenised beside the event loop: streams do not wait for it."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request

import numpy as np

from bench.server.__main__ import StubServer, body
from bench.serving.sse_client import Call, Client, request_bytes

STREAMS = 4
STEP_S = 0.02
MAX_STALL_MS = 50.0
TRIES = 4  # the machine may be busy with something else; one quiet moment is enough to tell
TEXT = ("The quick brown fox jumps over the lazy dog, again and again; ünïcode too. " * 20_000)[: 1 << 20]


def _post(url: str, at_s: float, seen: list) -> None:
    time.sleep(at_s)
    payload = json.dumps({"prompt": TEXT, "max_tokens": 1}).encode()
    try:
        urllib.request.urlopen(
            urllib.request.Request(url + "/v1/completions", payload, {"Content-Type": "application/json"}), timeout=60
        )
    except urllib.error.HTTPError as error:
        seen.append((error.code, error.read()))


def _longest_gap_ms() -> float:
    """Between two events of a stream while a prompt of 1 MB is refused for its number of tokens."""
    core, num_tokens, seen = min(os.sched_getaffinity(0)), 150, []
    with StubServer(STREAMS, STREAMS / STEP_S, core, []) as server:
        path, payload = body(False, num_tokens, stream=True)
        wire = request_bytes("127.0.0.1", path, payload)
        poster = threading.Thread(target=_post, args=(server.url, 1.0, seen))
        poster.start()
        calls = [Call(i, wire, 4, num_tokens) for i in range(STREAMS)]
        outcomes = Client("127.0.0.1", server.port, silence_s=30).run(calls, time.monotonic())
        poster.join()
    assert [outcome.error for outcome in outcomes] == [None] * STREAMS
    ((status, answer),) = seen
    assert status == 400 and b"tokens" in answer  # it was tokenised
    return 1e3 * max(float(np.diff(outcome.event_s).max()) for outcome in outcomes)


def test_a_prompt_of_a_megabyte_does_not_stall_a_stream():
    gaps_ms = []
    while not gaps_ms or (min(gaps_ms) > 1e3 * STEP_S + MAX_STALL_MS and len(gaps_ms) < TRIES):
        gaps_ms.append(_longest_gap_ms())
    assert min(gaps_ms) <= 1e3 * STEP_S + MAX_STALL_MS, gaps_ms
