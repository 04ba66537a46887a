"""Finding stop strings in a text that arrives in pieces.

One automaton for all stop strings of a request (Aho and Corasick, 1975): one step per character, whatever the strings
are, and its depth at any time is how many last characters may still become a stop string. The match that is complete
first counts; of several complete at one character, the longest. So the answer does not depend on how the text was cut.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable


class _Node:
    __slots__ = ("children", "depth", "fallback", "match")

    def __init__(self, depth: int):
        self.children: dict[str, _Node] = {}
        self.fallback: _Node | None = None
        self.match: str | None = None  # the longest stop string that ends here
        self.depth = depth


class StopAutomaton:
    """``feed`` text; it answers with a match or nothing, and ``num_pending`` characters may yet begin one."""

    def __init__(self, stop_strings: Iterable[str]):
        self._root = _build(tuple(stop_strings))
        self._node = self._root

    @property
    def num_pending(self) -> int:
        """How many characters at the end of the text fed so far are the beginning of a stop string."""
        return self._node.depth

    def feed(self, text: str) -> tuple[str, int] | None:
        """The stop string completed first in ``text`` and the index after its last character, or None.

        Text after a match is not looked at; another call goes on from there.
        """
        root, node = self._root, self._node
        if node is root and root.children.keys().isdisjoint(text):
            return None  # nearly all text: no character of it begins a stop string
        for index, char in enumerate(text):
            while node is not root and char not in node.children:
                node = node.fallback
            node = node.children.get(char, root)
            if node.match is not None:
                self._node = node
                return node.match, index + 1
        self._node = node
        return None

    def decline(self) -> None:
        """Go on after a match that does not count: a completed string is no longer pending by itself."""
        while self._node is not self._root and not self._node.children:
            self._node = self._node.fallback


@functools.lru_cache(maxsize=64)
def _build(stop_strings: tuple[str, ...]) -> _Node:
    """The automaton's states, never changed afterwards: the n sequences of a request share them."""
    root = _Node(0)
    for stop in stop_strings:
        node = root
        for char in stop:
            node = node.children.setdefault(char, _Node(node.depth + 1))
        node.match = stop
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for char, child in node.children.items():
            child.fallback = _next(node.fallback, char, root)
            child.match = child.match or child.fallback.match
            queue.append(child)
    return root


def _next(node: _Node | None, char: str, root: _Node) -> _Node:
    while node is not None and char not in node.children:
        node = node.fallback
    return root if node is None else node.children[char]
