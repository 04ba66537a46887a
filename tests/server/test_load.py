"""More requests than the queue takes: who gets a 429, how soon, what it says, and who must not get one."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from pyengine.admission import REASON_REQUESTS, REASON_TOKENS, DrainRate, QueueFull, QueueLimits, QueueLoad
from pyengine.protocol import Ready, Request, Stats
from pyengine.sampling_params import SamplingParams
from server.load import Backlog, load_of

# ---------------------------------------------------------------------- the rule


def check(limits=(4, 100), queued=(0, 0), new=(1, 10), drained=(0.0, 0.0)) -> QueueFull | None:
    try:
        QueueLimits(*limits).check(QueueLoad(*queued), QueueLoad(*new), QueueLoad(*drained))
    except QueueFull as error:
        assert error.status == 429
        return error
    return None


def test_an_empty_queue_takes_any_request():
    assert check(new=(1000, 10**7)) is None


@pytest.mark.parametrize(
    "queued, new, reason",
    [
        ((3, 10), (1, 10), None),
        ((4, 10), (1, 10), REASON_REQUESTS),
        ((1, 10), (4, 10), REASON_REQUESTS),
        ((1, 90), (1, 10), None),
        ((1, 90), (1, 11), REASON_TOKENS),
        ((4, 100), (1, 10), REASON_REQUESTS),
    ],
)
def test_the_bounds(queued, new, reason):
    error = check(queued=queued, new=new)
    assert (error.code if error else None) == reason


@pytest.mark.parametrize(
    "drained, seconds",
    [((0, 0), 1), ((0.5, 0), 4), ((0.5, 1), 10), ((100, 1000), 1), ((0.001, 0), 120)],
)
def test_retry_after_is_what_the_drain_rate_says(drained, seconds):
    assert check(queued=(4, 100), new=(2, 10), drained=drained).retry_after_s == seconds


def test_the_drain_rate_is_measured_while_something_waits():
    rate = DrainRate()
    assert rate.per_s == QueueLoad()
    rate.observe(100.0, QueueLoad(5, 50), queued=True)
    assert rate.per_s == QueueLoad()
    for i in range(1, 21):
        rate.observe(100.0 + i, QueueLoad(5 + 2 * i, 50 + 20 * i), queued=i < 20)
    assert rate.per_s.num_seqs == pytest.approx(2, rel=0.06) and rate.per_s.num_tokens == pytest.approx(20, rel=0.06)
    before = rate.per_s
    rate.observe(500.0, QueueLoad(1000, 10_000), queued=True)  # nothing waited in between: that says nothing
    assert rate.per_s == before
    for i in range(100):
        rate.observe(501.0 + i, QueueLoad(1000, 10_000), queued=True)
    assert rate.per_s.num_seqs < 0.2


# ---------------------------------------------------------------------- refusing early


def make_backlog(**stats) -> Backlog:
    ready = Ready(
        "m", 100, 100, 10, 16, "bfloat16", "cpu", max_num_seqs=2, max_queued_requests=4, max_queued_tokens=100
    )
    backlog = Backlog(ready)
    backlog.reported(Stats(**stats), 0)
    return backlog


def test_a_full_queue_is_refused_at_once():
    backlog = make_backlog(num_running=2, num_queued=4, num_queued_tokens=40, drained_seqs_per_s=0.25)
    with pytest.raises(QueueFull) as caught:
        backlog.check(QueueLoad(1, 10))
    assert caught.value.retry_after_s == 4 and caught.value.code == REASON_REQUESTS


def test_what_is_under_way_counts_once_the_rows_are_taken():
    backlog = make_backlog(num_running=2)
    for _ in range(4):
        backlog.check(QueueLoad(1, 10))
        backlog.sent(1, QueueLoad(1, 10))
    with pytest.raises(QueueFull):
        backlog.check(QueueLoad(1, 10))
    backlog.reported(None, 1)  # the engine has decided on one: what became of it, its next report says
    backlog.check(QueueLoad(1, 10))
    backlog.reported(Stats(num_running=2, num_queued=4, num_queued_tokens=40), 4)
    with pytest.raises(QueueFull):
        backlog.check(QueueLoad(1, 10))
    backlog.reported(Stats(num_running=2), 4)
    backlog.check(QueueLoad(1, 10))


def test_free_rows_leave_the_decision_to_the_engine():
    backlog = make_backlog(num_running=0)
    for _ in range(6):
        backlog.check(QueueLoad(1, 10))
        backlog.sent(1, QueueLoad(1, 10))
    with pytest.raises(QueueFull):
        backlog.check(QueueLoad(1, 10))


def test_the_load_of_a_request_counts_each_of_its_sequences():
    requests = [Request("a", [1, 2, 3], SamplingParams(n=2)), Request("b", [1], SamplingParams())]
    assert load_of(requests) == QueueLoad(3, 7)


# ---------------------------------------------------------------------- a running server with two rows and a queue of 4

LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "temperature": 0, "stream": True}


def open_request(server, body: dict) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.keys[0]}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection


def refusal(server, body: dict) -> tuple[float, http.client.HTTPResponse, dict]:
    """Seconds, answer and error of a request that gets one."""
    begin = time.monotonic()
    with closing(open_request(server, body)) as connection:
        response = connection.getresponse()
        seconds = time.monotonic() - begin
        return seconds, response, json.loads(response.read())["error"]


def wait_idle(server) -> None:
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 20, "idle")
    server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 0, 20, "idle")


@pytest.fixture
def saturated(strict_server):
    """Both rows busy and four sequences queued."""
    wait_idle(strict_server)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(open_request(strict_server, LONG)))
        strict_server.wait_until(lambda: strict_server.metric("vllm:num_requests_running") == 2, 20, "busy")
        for _ in range(4):
            stack.enter_context(closing(open_request(strict_server, LONG)))
        strict_server.wait_until(lambda: strict_server.metric("vllm:num_requests_waiting") == 4, 20, "full")
        yield strict_server
    wait_idle(strict_server)


def test_a_full_queue_answers_429_soon(saturated):
    rejected = saturated.metric("vllm:admission_rejections_total")
    seconds = []
    for i in range(20):
        elapsed, response, error = refusal(saturated, {**LONG, "stream": i % 2 == 0})
        seconds.append(elapsed)
        assert response.status == 429 and error["code"] == REASON_REQUESTS and error["type"] == "RateLimitError"
        assert 1 <= int(response.headers["Retry-After"]) <= 120 and "--max-queued-requests" in error["message"]
    assert sorted(seconds)[len(seconds) // 2] < 0.05
    assert saturated.metric("vllm:admission_rejections_total") == rejected + 20
    _, body, _ = saturated.request("/metrics")
    assert f'reason="{REASON_REQUESTS}"'.encode() in body and f'reason="{REASON_TOKENS}"'.encode() in body


def test_what_was_taken_is_not_harmed(saturated):
    for _ in range(5):
        assert refusal(saturated, LONG)[1].status == 429
    assert saturated.metric("vllm:num_requests_running") == 2 and saturated.metric("vllm:num_requests_waiting") == 4


def test_the_engine_itself_refuses_a_burst_and_takes_the_rest(strict_server):
    """All at once, so that only the engine can tell whom there is room for."""
    wait_idle(strict_server)
    statuses = []

    def one() -> None:
        with closing(open_request(strict_server, {**LONG, "max_tokens": 3, "stream": False})) as connection:
            statuses.append(connection.getresponse().status)

    threads = [threading.Thread(target=one) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses) == 24 and set(statuses) <= {200, 429}
    assert statuses.count(200) >= 4  # the queue's worth, whatever the moment


def test_tokens_bound_the_queue_too(strict_server):
    wait_idle(strict_server)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(open_request(strict_server, LONG)))
        strict_server.wait_until(lambda: strict_server.metric("vllm:num_requests_waiting") == 1, 20, "queueing")
        _, response, error = refusal(strict_server, {**LONG, "prompt": [7] * 3000})
        assert response.status == 429 and error["code"] == REASON_TOKENS
    wait_idle(strict_server)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(strict_server):
    wait_idle(strict_server)
    prompts = [[5, 6, 7, 8 + i] for i in range(12)]
    body = {"prompt": prompts, "max_tokens": 2, "temperature": 0, "n": 2}
    with closing(open_request(strict_server, body)) as connection:
        answer = json.loads(connection.getresponse().read())
    assert len(answer["choices"]) == 24 and answer["usage"]["completion_tokens"] == 48
    with closing(open_request(strict_server, {"prompt": [9] * 5000, "max_tokens": 1})) as connection:
        response = connection.getresponse()
        assert response.status == 200, response.read()
