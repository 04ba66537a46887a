"""The HTTP layer against clients that are slow, huge, malformed, many or hostile: over real sockets, without an engine.

After each of them the server must be as responsive as before and no larger.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw_http import Raw, exchange, get, post

from pyengine.errors import RequestError
from server.connections import Connections
from server.http_head import DEFAULT_LIMITS, HeadLimits, parse_head
from server.request_id import request_id

CLIENT_TIMEOUT_S = 1.5
IDLE_TIMEOUT_S = 4.0
MAX_BODY = 1 << 20


class Stub:
    """``stub_server.py`` with short timeouts."""

    def __init__(self, *flags: str):
        command = [sys.executable, str(Path(__file__).with_name("stub_server.py")), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def latency_s(self) -> float:
        """The longest of five /health answers on new connections."""
        worst = 0.0
        for _ in range(5):
            begin = time.monotonic()
            assert exchange(self.port, get("/health", "Connection: close")).status == 200
            worst = max(worst, time.monotonic() - begin)
        return worst

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


@pytest.fixture(scope="module")
def stub():
    flags = ["--client-timeout", str(CLIENT_TIMEOUT_S), "--idle-timeout", str(IDLE_TIMEOUT_S)]
    running = Stub(*flags, "--max-body-size", str(MAX_BODY), "--max-connections", "1100")
    yield running
    running.stop()


@contextlib.contextmanager
def unharmed(stub: Stub, max_growth_mib: float = 30.0):
    """Responsive and not larger, meanwhile and afterwards."""
    exchange(stub.port, get("/health"))
    before = stub.rss_mib()
    yield
    assert stub.latency_s() < 0.5
    assert stub.rss_mib() - before < max_growth_mib


# ---------------------------------------------------------------------- malformed and oversized

CRLF = b"\r\n\r\n"
MALFORMED = {
    "no words": (b"GARBAGE" + CRLF, 400),
    "two words": (b"GET /health" + CRLF, 400),
    "four words": (b"GET /health x HTTP/1.1" + CRLF, 400),
    "http/2": (b"PRI * HTTP/2.0" + CRLF, 505),
    "version": (b"GET / HTTP/x.y" + CRLF, 400),
    "no host": (b"GET /health HTTP/1.1" + CRLF, 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b" + CRLF, 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "nul": (b"GET /\x00 HTTP/1.1\r\nHost: a" + CRLF, 400),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2" + CRLF, 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : a" + CRLF, 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nfoo" + CRLF, 400),
    "control in value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01" + CRLF, 400),
    "bare cr": (b"GET / HTTP/1.1\r\nHost: a\rX: b" + CRLF, 400),
    "negative length": (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1" + CRLF, 400),
    "signed length": (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +1" + CRLF, 400),
    "two lengths": (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2" + CRLF, 400),
    "huge length": (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 400 + CRLF, 400),
    "length and chunks": (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked" + CRLF,
        400,
    ),
    "other coding": (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked" + CRLF, 501),
    "long line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a" + CRLF, 414),
    "endless line": (b"GET /" + b"a" * 200_000, 414),
    "large header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + CRLF, 431),
    "endless headers": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 3000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * DEFAULT_LIMITS.max_headers + b"\r\n", 431),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_refused_in_json(stub, name):
    data, status = MALFORMED[name]
    with Raw(stub.port) as raw:
        begin = time.monotonic()
        answer = raw.send(data).answer()
        assert time.monotonic() - begin < 1.0  # without waiting for more
        assert answer.status == status and answer.error["message"]
        assert answer.headers["connection"] == "close" and answer.headers["x-request-id"].startswith("req-")
        raw.socket.shutdown(socket.SHUT_WR)
        raw.closed_within(1.0)


@pytest.mark.parametrize(
    "path, method, status", [("/nothing", "GET", 404), ("/v1//models", "GET", 404), ("/health", "BREW", 405)]
)
def test_wrong_routes_are_refused_in_json(stub, path, method, status):
    answer = exchange(stub.port, get(path).replace(b"GET", method.encode()))
    assert answer.status == status and answer.error["message"]


def test_a_bug_tells_the_client_nothing(stub):
    answer = exchange(stub.port, get("/bug"))
    assert answer.status == 500 and b"secret" not in answer.body and answer.error["type"] == "InternalServerError"


def chunked(*headers: str) -> bytes:
    head = ["POST /echo HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *headers, "", ""]
    return "\r\n".join(head).encode()


BODIES = {
    "plain": (post("/echo", b"x" * 1000), 200),
    "chunked": (chunked() + b"3\r\nabc\r\n5;name=value\r\ndefgh\r\n0\r\nTrailer: x\r\n\r\n", 200),
    "absolute form": (post("http://localhost/echo", b"x" * 7), 200),
    "bad chunk size": (chunked() + b"xyz\r\n", 400),
    "negative chunk": (chunked() + b"-3\r\nabc\r\n", 400),
    "chunk too long": (chunked() + b"3\r\nabcdef\r\n0\r\n\r\n", 400),
    "endless chunk line": (chunked() + b"3" + b";" * 5000, 400),
    "endless trailers": (chunked() + b"0\r\n" + b"T: x\r\n" * 5000, 400),
    "many tiny chunks": (chunked() + b"1\r\nx\r\n" * 20_000, 400),
    "announced too large": (post("/echo", b"").replace(b"Length: 0", b"Length: 100000000"), 413),
    "chunked too large": (chunked() + b"10000\r\n" + b"x" * 65536 + b"\r\n" + b"fffffff\r\n", 413),
    "gzip": (post("/echo", b"\x1f\x8b", "Content-Encoding: gzip"), 415),
    "identity": (post("/echo", b"x", "Content-Encoding: identity"), 200),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(stub, name):
    data, status = BODIES[name]
    answer = exchange(stub.port, data)
    assert answer.status == status
    if status == 200:
        assert answer.body == {"plain": b"1000", "chunked": b"8", "absolute form": b"7", "identity": b"1"}[name]
    else:
        assert answer.error["message"]


def test_a_client_may_wait_for_continue(stub):
    with Raw(stub.port) as raw:
        raw.send(post("/echo", b"abc", "Expect: 100-continue")[:-3])
        assert raw._read_until(CRLF) == b"HTTP/1.1 100 Continue"
        assert raw.send(b"abc").answer().body == b"3"


def test_a_body_of_100_mb_is_refused_while_it_is_sent(stub):
    with unharmed(stub, 10), Raw(stub.port) as raw:
        raw.send(post("/echo", b"").replace(b"Length: 0", b"Length: 104857600"))
        for _ in range(100):
            raw.send(b"x" * (1 << 20))
        assert raw.answer().status == 413


# ---------------------------------------------------------------------- one connection, many requests


def test_a_connection_is_kept_for_the_next_request(stub):
    with Raw(stub.port) as raw:
        for i in range(3):
            answer = raw.send(get("/health", f"X-Request-Id: mine {i}")).answer()
            assert answer.status == 200 and answer.headers["x-request-id"] == f"mine {i}"
        answer = raw.send(post("/nothing", b"a small body that nobody reads")).answer()
        assert answer.status == 404 and "connection" not in answer.headers
        assert raw.send(get("/health", "Connection: close")).answer().headers["connection"] == "close"
        raw.closed_within(1.0)


def test_pipelined_requests_are_answered_in_order(stub):
    with Raw(stub.port) as raw:
        raw.send(
            post("/echo", b"a") + post("/echo", b"bb") + b"\r\n" + get("/nothing") + b"JUNK" + CRLF + get("/health")
        )
        assert [raw.answer().body for _ in range(2)] == [b"1", b"2"]
        assert [raw.answer().status for _ in range(2)] == [404, 400]


def test_a_flood_of_pipelined_requests_leaves_others_their_turn(stub):
    with unharmed(stub), Raw(stub.port) as raw:
        raw.socket.setblocking(False)
        flood = get("/health") * 2000
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            for _ in range(20):
                raw.socket.send(flood)
        assert stub.latency_s() < 0.3


# ---------------------------------------------------------------------- slow clients


@pytest.mark.parametrize(
    "data", [b"GET /health HTTP/1.1\r\nHost: a\r\n", post("/echo", b"x" * 100)[:-50], chunked() + b"5\r\nab"]
)
def test_half_a_request_is_given_up_after_the_client_timeout(stub, data):
    with Raw(stub.port) as raw:
        begin = time.monotonic()
        raw.send(data)
        answer = raw.answer()
        assert answer.status == 408 and "--client-timeout" in answer.error["message"]
        assert CLIENT_TIMEOUT_S * 0.9 < time.monotonic() - begin < CLIENT_TIMEOUT_S + 2


def test_a_byte_now_and_then_does_not_extend_the_time(stub):
    with Raw(stub.port) as raw:
        begin = time.monotonic()
        raw.send(b"GET /health HTTP/1.1\r\n")
        raw.socket.settimeout(0.2)
        while time.monotonic() - begin < CLIENT_TIMEOUT_S + 3:
            raw.send(b"X: y\r\n")
            try:
                assert raw.answer().status == 408
                break
            except TimeoutError:
                continue
        else:
            raise AssertionError("still reading headers")


@pytest.mark.parametrize("data", [b"GET /health HTTP/1.1\r\n", post("/echo", b"x" * 100)[:-50]])
def test_a_client_that_leaves_in_the_middle_is_no_error_of_ours(stub, data):
    with Raw(stub.port) as raw:
        raw.send(data).socket.shutdown(socket.SHUT_WR)
        assert raw.answer().status == 400


def test_small_answers_are_not_held_back(stub):
    """Head and body are two packets: with Nagle's algorithm the second would wait for a delayed acknowledgement."""
    with Raw(stub.port) as raw:
        begin = time.monotonic()
        for _ in range(20):
            assert raw.send(post("/echo", b"x")).answer().status == 200
        assert time.monotonic() - begin < 20 * 0.02


def test_an_idle_connection_is_closed(stub):
    with Raw(stub.port) as fresh, Raw(stub.port) as used:
        assert used.send(get("/health")).answer().status == 200
        fresh.closed_within(IDLE_TIMEOUT_S + 1.5)
        used.closed_within(IDLE_TIMEOUT_S + 1.5)


def test_a_client_that_does_not_read_is_cut_off_and_slows_nobody(stub):
    with unharmed(stub, 15), contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Raw(stub.port, receive_buffer=4096)) for _ in range(20)]
        for reader in readers:
            reader.send(get("/flood?mb=200"))
        assert stub.latency_s() < 0.5
        time.sleep(CLIENT_TIMEOUT_S + 1.0)
        for reader in readers:
            reader.socket.settimeout(5)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := reader.socket.recv(1 << 20):
                    received += len(data)
            assert received < 2 << 20


def test_a_client_that_reads_gets_everything(stub):
    with Raw(stub.port) as raw:
        raw.send(get("/flood?mb=20"))
        received = 0
        while received < 20 << 20:
            data = raw.socket.recv(1 << 20)
            assert data, f"the server closed the connection after {received} bytes"
            received += len(data)


# ---------------------------------------------------------------------- many clients


def test_a_thousand_idle_connections(stub):
    with unharmed(stub, 60), contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(Raw(stub.port))
        assert stub.latency_s() < 0.5


def test_beyond_the_limit_the_oldest_idle_connection_makes_room(stub):
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Raw(stub.port)) for _ in range(1100)]
        late = stack.enter_context(Raw(stub.port))
        assert late.send(get("/health")).answer().status == 200
        crowd[0].closed_within(1.0)
        assert crowd[-1].send(get("/health")).answer().status == 200


def test_header_floods(stub):
    flood = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 100) for i in range(20_000))
    with unharmed(stub):
        for _ in range(20):
            assert exchange(stub.port, flood).status == 431


# ---------------------------------------------------------------------- without sockets


def test_heads():
    head = parse_head(b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Y:  two \t\r\nx-y: three\r\nConnection: Keep-Alive, Close")
    assert (head.method, head.target, head.headers["x-y"], head.keep_alive) == ("POST", "/a?b=c", "two, three", False)
    assert parse_head(b"GET / HTTP/1.0").keep_alive is False
    assert parse_head(b"GET / HTTP/1.0\r\nConnection: keep-alive").keep_alive is True
    absolute = parse_head(b"GET http://other:1?q HTTP/1.1\r\nHost: x")
    assert (absolute.target, absolute.headers["host"]) == ("/?q", "other:1")
    with pytest.raises(RequestError):
        parse_head(b"")


def test_limits_of_heads():
    limits = HeadLimits(max_headers=2, max_bytes=24)
    assert parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: two", limits).headers["x-y"] == "two"
    for data, named in (
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nC: d", "may have 2 headers (--max-headers), got 3"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: two and three", "larger than 24 bytes (--max-header-size)"),
    ):
        with pytest.raises(RequestError) as caught:
            parse_head(data, limits)
        assert caught.value.status == 431 and named in caught.value.message


@pytest.mark.parametrize("given", ["a", "x" * 128, "a b", "0b9f-77:1/~"])
def test_sane_request_ids_are_kept(given):
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, " a", "a\tb", "é", "a\x7f", "a\r\nX: y"])
def test_other_request_ids_are_replaced(given):
    made = request_id(given)
    assert made.startswith("req-") and len(made) == 36 and made != request_id(given)


def test_the_longest_idle_connection_goes_first():
    closed = []
    table = Connections(2, closed.append)
    assert table.enter("a") and table.enter("b")
    table.begin("a")
    assert table.enter("c") and closed == ["b"]
    table.leave("b")
    table.begin("c")
    assert not table.enter("d") and len(table) == 2
    table.end("a")
    assert table.enter("d") and closed == ["b", "a"]
