"""A quiet stream is kept alive, a busy one is not disturbed."""

from __future__ import annotations

import pytest

from server.openai import sse
from server.openai.sse import KEEP_ALIVE, KeepAlive


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sse.time, "monotonic", lambda: now[0])
    return now


def test_tokens_without_events_are_silent_until_the_interval_is_over(clock):
    keep_alive = KeepAlive(15.0)
    sent = []
    for _ in range(40):  # a token a second that is part of a tool call, say
        clock[0] += 1.0
        sent.append(keep_alive(b""))
    assert [i for i, data in enumerate(sent, 1) if data] == [14, 28] and set(sent) == {b"", KEEP_ALIVE}
    clock[0] += 10.0
    assert keep_alive(b"data: 1\n\n") == b"data: 1\n\n"
    clock[0] += 10.0
    assert keep_alive(b"") == b"", "events count as well"


def test_a_wait_of_the_interval_is_answered_by_a_comment(clock):
    keep_alive = KeepAlive(15.0, b"event: ping\n\n")
    clock[0] += 14.999
    assert keep_alive(b"") == b"event: ping\n\n"


def test_it_can_be_turned_off(clock):
    keep_alive = KeepAlive(None)
    clock[0] += 1e6
    assert keep_alive(b"") == b"" and keep_alive(b"x") == b"x"
