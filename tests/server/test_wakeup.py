"""Waiting for tokens: woken once, on time, and never after the end."""

from __future__ import annotations

import time

import gevent
import pytest

from server.wakeup import Wakeup


@pytest.fixture
def wakeup():
    made = Wakeup()
    yield made
    made.close()


def test_a_set_flag_is_not_waited_for(wakeup):
    wakeup.set()
    assert wakeup.wait() and wakeup.wait(0.0)


def test_setting_wakes_the_waiter_once(wakeup):
    seen = []

    def reader():
        while len(seen) < 2:
            seen.append(wakeup.wait(5))
            wakeup.clear()

    greenlet = gevent.spawn(reader)
    for _ in range(2):
        gevent.sleep(0.01)
        wakeup.set()
        wakeup.set()
    greenlet.join(1)
    assert seen == [True, True]


def test_the_time_counts_from_the_last_wait(wakeup):
    begin = time.monotonic()
    gevent.spawn_later(0.1, wakeup.set)
    assert wakeup.wait(0.2)
    wakeup.clear()
    assert not wakeup.wait(0.2)
    assert 0.29 < time.monotonic() - begin < 0.5


def test_a_reader_that_is_killed_is_not_switched_to(wakeup):
    greenlet = gevent.spawn(wakeup.wait, 5)
    gevent.sleep(0)
    wakeup.set()
    greenlet.kill()
    wakeup.clear()
    other = gevent.spawn(wakeup.wait, 0.05)
    other.join(1)
    assert other.value is False
