"""The load client of the benchmarks: what it counts as an event, an end, a fault; and the workloads it runs."""

from __future__ import annotations

import socket
import threading

import pytest

from bench.serving.sse_client import Call, Client, EventReader, request_bytes
from bench.serving.workloads import make_online_workload

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [
    b'{"choices":[{"text":"a","finish_reason":null}],"usage":null}',
    b'{"choices": [{"text": "", "finish_reason": null}]}',  # a token without text yet
    b'{"choices":[{"text":"","finish_reason":"length"}]}',  # no token
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}',
    b"[DONE]",
]


def _wire(payloads: list[bytes], end: bytes = b"\n\n") -> bytes:
    data = [b": keep-alive" + end, *(b"data: " + payload + end for payload in payloads)]
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in data) + b"0\r\n\r\n"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_events_come_out_however_the_bytes_are_cut(size, end):
    wire, reader = _wire(EVENTS, end), EventReader()
    events = [event for i in range(0, len(wire), size) for event in reader.feed(wire[i : i + size])]
    assert events == EVENTS


def _run(answer: bytes, max_tokens: int = 2):
    """One call against a server that answers with these bytes and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        client.recv(1 << 16)
        client.sendall(answer)
        client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    call = Call(0, request_bytes("127.0.0.1", "/v1/completions", {}), num_prompt_tokens=3, max_tokens=max_tokens)
    (outcome,) = Client("127.0.0.1", port).run([call], 0.0)
    thread.join()
    listener.close()
    return outcome


def test_a_whole_answer_has_its_events_timed():
    outcome = _run(_wire(EVENTS))
    assert outcome.error is None
    assert len(outcome.event_s) == 2


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (_wire(EVENTS[:-1]), "without"),
        (_wire(EVENTS[:3] + EVENTS[4:]), "tokens"),
        (_wire([b'{"error":{"message":"no room"}}', b"[DONE]"]), "no room"),
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nlate", "429"),
        (b"", "without"),
    ],
)
def test_a_failed_answer_says_why(answer, fault):
    assert fault in _run(answer).error


def test_a_short_answer_is_a_fault():
    assert "tokens in and out" in _run(_wire(EVENTS), max_tokens=3).error


def test_arrivals_and_lengths_are_the_same_in_every_run_and_prompts_are_not():
    first, second = (make_online_workload("rate:25:50", 1000, seed) for seed in (0, 1))
    assert [(len(i.prompt_token_ids), i.max_tokens, i.arrival_s) for i in first] == [
        (len(i.prompt_token_ids), i.max_tokens, i.arrival_s) for i in second
    ]
    assert first[0].prompt_token_ids != second[0].prompt_token_ids
    assert all(16 <= len(i.prompt_token_ids) <= 4000 and 16 <= i.max_tokens <= 1000 for i in first)
    assert 1.0 < first[-1].arrival_s < 4.0


def test_spike_is_streams_and_a_chain_of_long_prompts():
    items = make_online_workload("spike", 1000)
    assert [len(i.prompt_token_ids) for i in items] == [512] * 32 + [16_000] * 6
    assert [i.chained for i in items] == [False] * 32 + [True] * 6


@pytest.mark.parametrize("spec", ["rate", "rate:1", "burst:x", "spike:1", "other"])
def test_a_workload_that_does_not_exist_is_refused(spec):
    with pytest.raises(ValueError, match="unknown"):
        make_online_workload(spec, 1000)
