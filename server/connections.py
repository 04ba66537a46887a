"""How many connections there may be, and which one goes when there is no room: the one that has been idle the longest.

So clients that only hold connections open, and clients that never finish a request, cannot keep others out.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Hashable

RESERVED_FILES = 128  # for everything that is not a client's connection


class Connections:
    """The table of open connections. ``close`` is called with the connection that has to go; its ``leave`` follows."""

    def __init__(self, max_connections: int, close: Callable[[Hashable], None]):
        self._max_connections = max_connections
        self._close = close
        self._idle: dict[Hashable, None] = {}  # oldest first
        self._busy: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    @property
    def num_busy(self) -> int:
        """Connections with a request that is being read, prepared or answered."""
        return len(self._busy)

    def enter(self, connection: Hashable) -> bool:
        """A new connection, idle until its first request is complete; False when all others are busy."""
        if len(self) >= self._max_connections:
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self._close(oldest)
        self._idle[connection] = None
        return True

    def begin(self, connection: Hashable) -> None:
        """A request is being answered."""
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def end(self, connection: Hashable) -> None:
        """It waits for its next request."""
        self._busy.discard(connection)
        self._idle[connection] = None

    def leave(self, connection: Hashable) -> None:
        self._idle.pop(connection, None)
        self._busy.discard(connection)


def connection_limit(wanted: int) -> int:
    """``wanted``, or what this process may open; raises its own limit of open files as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - RESERVED_FILES))
