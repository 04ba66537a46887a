"""Waiting for the next token, which a server does more often than anything else.

gevent's ``Event.wait`` with a timeout makes a timer for each wait and goes through the hub twice for each wake-up. Here
a stream keeps one timer, which looks when it goes off whether its time has really come, and one callback switches
straight to the greenlet that waits.
"""

from __future__ import annotations

import time

import gevent
from gevent import getcurrent


class Wakeup:
    """A flag that one greenlet waits for and others on the same event loop set. ``close`` it at the end."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._is_set = False
        self._is_waking = False  # a callback is on its way
        self._waiter: gevent.Greenlet | None = None
        self._timer = None
        self._timer_s = 0.0  # when it goes off
        self._deadline_s = 0.0  # of the latest wait
        self._timed_out = False

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._is_waking:
            self._is_waking = True
            self._hub.loop.run_callback(self._wake)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is set now, after ``timeout_s`` at the latest."""
        if self._is_set:
            return True
        if timeout_s is not None:
            self._set_timer(timeout_s)
        self._timed_out = False
        self._waiter = getcurrent()
        try:
            while not self._is_set and not self._timed_out:
                self._hub.switch()
        finally:  # also when the greenlet is killed here: nobody switches to it afterwards
            self._waiter = None
        return self._is_set

    def close(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _wake(self) -> None:
        self._is_waking = False
        if self._waiter is not None:
            self._waiter.switch()

    def _set_timer(self, timeout_s: float) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        if self._timer is not None and self._deadline_s < self._timer_s:
            self.close()
        if self._timer is None:
            self._start_timer(timeout_s)

    def _start_timer(self, seconds: float) -> None:
        self._timer_s = time.monotonic() + seconds
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._on_timer)

    def _on_timer(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        self.close()
        if self._waiter is None:
            return  # the next wait starts a new one
        if left_s > 0:
            self._start_timer(left_s)
            return
        self._timed_out = True
        self._wake()
