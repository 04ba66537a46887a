"""Slow pure computation on gevent's native threads, so that it stalls no stream.

An exception comes back as a value and is raised where the result is awaited: gevent's pool would print it besides, and
here an exception is mostly a client's mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import gevent
from gevent.threadpool import ThreadPool

T = TypeVar("T")
MAX_COMPILED = 4  # bodies at a time that may ask for a grammar


class Computation:
    """``function(*args)`` under way on a thread of ``pool`` (the hub's, when not given); ``wait`` gives its result or
    raises what it raised.
    """

    def __init__(self, function: Callable[..., T], *args: Any, pool: ThreadPool | None = None):
        self._outcome = (pool or gevent.get_hub().threadpool).spawn(_outcome, function, args)

    def wait(self) -> T:
        result, error = self._outcome.get()
        if error is not None:
            raise error
        return result


def computed(is_long: bool, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, on a thread where that takes long."""
    return Computation(function, *args).wait() if is_long else function(*args)


@cache
def compiling_threads() -> ThreadPool:
    """For what may ask for a grammar, which may take seconds: no other body waits behind it."""
    return ThreadPool(MAX_COMPILED)


def _outcome(function: Callable[..., T], args: tuple) -> tuple[T | None, Exception | None]:
    try:
        return function(*args), None
    except Exception as error:
        return None, error
