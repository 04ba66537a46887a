"""Matchers, one for each sequence that is bound: made on threads, and a few ahead for grammars that come again.

Making one takes half a millisecond, a tenth of a second where a schema is large, so it happens off the engine's loop;
llguidance drops the GIL meanwhile. Agents send one schema with every request: from the second time on some wait ready.

They are never copied. A copy shares its automaton with the original: where one sequence's text drives that past its
limits, all of them come to an end, and only one of them computes a mask at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future

from llguidance import LLMatcher

AHEAD = 4  # of each grammar
MAX_GRAMMARS = 16  # whose matchers wait; the one that was not asked for the longest goes first


class MatcherSupply:
    """``make`` runs on ``threads`` for a sequence that waits, ahead on ``spare_threads``, so that nobody waits for what
    nobody may want.
    """

    def __init__(self, make: Callable[[str], LLMatcher], threads: Executor, spare_threads: Executor):
        self._make = make
        self._threads = threads
        self._spare_threads = spare_threads
        self._ahead: OrderedDict[str, deque[Future[LLMatcher]]] = OrderedDict()

    def take(self, grammar: str) -> Future[LLMatcher]:
        """A matcher that nobody else has, under way or there."""
        ahead = self._ahead.pop(grammar, None)
        comes_again = ahead is not None
        self._ahead[grammar] = ahead = ahead or deque()
        matcher = ahead.popleft() if ahead and ahead[0].done() else self._threads.submit(self._make, grammar)
        while comes_again and len(ahead) < AHEAD:
            ahead.append(self._spare_threads.submit(self._make, grammar))
        if len(self._ahead) > MAX_GRAMMARS:
            _, forgotten = self._ahead.popitem(last=False)
            for future in forgotten:
                future.cancel()
        return matcher
