"""A grammar that binds only what comes behind the model's thinking.

    prompt has opened it:     [ thinking ... </think> ]  answer
    the model may open it:    [ <think> ... </think> ]?  answer          answer: bound by the grammar

Thinking may have a budget: once it is used up, only the end mark can be drawn. The answer may then be free as well.

The marks are looked for in bytes, since a mark need not be one token. A token that ends the thinking and already begins
the answer is not allowed, so the answer is whole. White space behind a mark belongs to nobody, as everywhere: models
that are used to an empty line there may draw one token of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyengine.sampling_params import Thinking
from pyengine.structured.thinking_budget import Unbound, spelling
from pyengine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from pyengine.structured.matcher import SequenceGrammar


@dataclass(frozen=True)
class MarkTokens:
    """Masks int32 [words] by how many bytes of a mark have been drawn.

    Attributes:
        openers: the tokens that go on with the first mark.
        thinkers: all but those that end the second mark and begin the answer; only where there are such.
        closers: the tokens that go on with the second mark and do not begin the answer.
        blanks: the tokens that are white space; one mask.
    """

    openers: dict[int, np.ndarray]
    thinkers: dict[int, np.ndarray]
    closers: dict[int, np.ndarray]
    blanks: np.ndarray

    @classmethod
    def find(cls, begin: bytes, end: bytes, tokenizer: Tokenizer, vocab_size: int) -> MarkTokens:
        openers: dict[int, list[int]] = defaultdict(list)
        spoilers: dict[int, list[int]] = defaultdict(list)
        closers: dict[int, list[int]] = defaultdict(list)
        blanks = []
        for token_id in range(vocab_size):
            data = tokenizer.id_to_bytes(token_id)
            if data and not data.strip():
                blanks.append(token_id)
            for drawn in _places(data, begin):
                openers[drawn].append(token_id)
            fits = _places(data, end)
            places = [drawn for drawn in fits if data[len(end) - drawn :].strip()]
            for drawn in set(fits).difference(places):
                closers[drawn].append(token_id)
            if end in data[1:] and data.partition(end)[2].strip():
                places = range(len(end))
            for drawn in places:
                spoilers[drawn].append(token_id)
        closers |= {drawn: [token_id] for drawn, token_id in spelling(end, tokenizer, vocab_size).items()}
        return cls(
            {drawn: _bits(ids, vocab_size) for drawn, ids in openers.items()},
            {drawn: ~_bits(ids, vocab_size) for drawn, ids in spoilers.items()},
            {drawn: _bits(ids, vocab_size) for drawn, ids in closers.items()},
            _bits(blanks, vocab_size),
        )


def _places(data: bytes, mark: bytes) -> list[int]:
    """After how many bytes of ``mark`` the token is or completes a run of its next ones."""
    if not data:
        return []
    rests = ((drawn, mark[drawn:]) for drawn in range(len(mark)) if mark[drawn] == data[0])
    return [drawn for drawn, rest in rests if rest.startswith(data) or data.startswith(rest)]


def _bits(token_ids: list[int], vocab_size: int) -> np.ndarray:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


class ThinkingGrammar:
    """``SequenceGrammar`` behind thinking; the same interface."""

    def __init__(
        self,
        grammar: SequenceGrammar | Unbound,
        thinking: Thinking,
        marks: Future[MarkTokens],
        bytes_of: Callable[[int], bytes],
    ):
        self._grammar = grammar
        self._marks = marks
        self._bytes_of = bytes_of
        self._begin, self._end = thinking.begin.encode(), thinking.end.encode()
        self._budget = thinking.budget
        self._num_thought = 0  # tokens
        self._thinks = thinking.inside
        self._may_open = not thinking.inside
        self._matches = True  # what was drawn while it may open is an answer so far
        self._may_pause = False  # the thinking has just ended
        self._tail = b""  # what may be the beginning of the mark that is looked for

    @property
    def ready(self) -> bool:
        return self._grammar.ready and self._marks.done()

    @property
    def error(self) -> str:
        failure = self._marks.exception()
        return str(failure) if failure else self._grammar.error

    @property
    def complete(self) -> bool:
        return not self._thinks and self._matches and self._grammar.complete

    @property
    def constrains(self) -> bool:
        if not self._thinks or self._is_over:
            return self._thinks or self._grammar.constrains
        return self._grammar.constrains and self._num_drawn in self._marks.result().thinkers

    @property
    def _is_over(self) -> bool:
        """The thinking has used up its budget."""
        return self._budget is not None and self._num_thought >= self._budget

    @property
    def bare_matcher(self) -> LLMatcher | None:
        is_bare = self._matches and not (self._thinks or self._may_pause or self._may_open)
        return self._grammar.bare_matcher if is_bare else None

    def fill_mask(self, masks: np.ndarray, index: int) -> None:
        if self._thinks:
            marks, drawn = self._marks.result(), self._num_drawn
            masks[index] = marks.closers.get(drawn, marks.closers.get(0, 0)) if self._is_over else marks.thinkers[drawn]
            return
        if self._matches:
            self._grammar.fill_mask(masks, index)
        else:
            masks[index] = 0
        if self._may_pause:
            masks[index] |= self._marks.result().blanks
        if self._may_open:
            masks[index] |= self._marks.result().openers.get(len(self._tail), 0)

    def accept(self, token_id: int) -> bool:
        if self._thinks:
            self._num_thought += 1
            self._think(self._bytes_of(token_id))
            return True
        if self._may_open:
            return self._open(token_id)
        paused, self._may_pause = self._may_pause, False
        if paused and not self._bytes_of(token_id).strip() and not self._grammar.allows(token_id):
            return True
        return self._grammar.accept(token_id)

    def allowed_ids(self) -> set[int]:
        """The tokens that may come next. For explaining failures: ``fill_mask`` is the fast way."""
        masks = np.full((1, len(self._marks.result().blanks)), -1, np.int32)
        if self.constrains:
            self.fill_mask(masks, 0)
        return set(np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little")).tolist())

    @property
    def _num_drawn(self) -> int:
        """Bytes of the end mark drawn so far: the mark has no border, so there is one way to count."""
        tail = self._tail
        return next((n for n in range(len(self._end) - 1, 0, -1) if tail.endswith(self._end[:n])), 0)

    def _think(self, data: bytes) -> None:
        data = self._tail + data
        self._tail = data[-(len(self._end) - 1) :]
        if self._end in data:
            self._thinks, self._tail = False, b""
            self._may_pause = data.endswith(self._end)

    def _open(self, token_id: int) -> bool:
        """A token of the mark, of the answer, or as yet of both."""
        drawn = (self._tail + self._bytes_of(token_id)).lstrip()
        if drawn.startswith(self._begin):
            self._grammar.restart()
            self._may_open, self._thinks, self._matches, self._tail = False, True, True, b""
            self._think(drawn[len(self._begin) :])
            return True
        self._matches = self._matches and self._grammar.allows(token_id) and self._grammar.accept(token_id)
        self._may_open = self._begin.startswith(drawn)
        self._tail = drawn if self._may_open else b""
        return self._matches or self._may_open
