"""The engine's side of structured output: one matcher per sequence, made off the loop (``supply``), asked for a mask
before each draw.

A sequence is admitted when its matcher is there. After that a step costs it one mask and one consumed token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from pyengine.sampling_params import Thinking
from pyengine.structured.compiler import parser_limits
from pyengine.structured.supply import MatcherSupply
from pyengine.structured.thinking import MarkTokens, ThinkingGrammar
from pyengine.structured.thinking_budget import Unbound
from pyengine.text.tokenizer import Tokenizer

# A mask takes 5 to 30 us, now and then a millisecond (a string near its maxLength); waking threads takes 10 and more.
PARALLEL_FROM = 8
MAX_MASK_THREADS = 8
MAX_MAKING_THREADS = 4
MAX_REMEMBERED_CHARS = 64


class SequenceGrammar:
    """The grammar of one sequence. ``ready`` before anything else is asked."""

    def __init__(self, matcher: Future[LLMatcher]):
        self._matcher = matcher

    @property
    def ready(self) -> bool:
        return self._matcher.done()

    @property
    def error(self) -> str:
        """Why the sequence cannot go on; empty while all is well."""
        failure = self._matcher.exception()
        text = str(failure) if failure else self._matcher.result().get_error()
        return " ".join(text.partition("<state>")[0].split())[:500]  # behind it stand the library's internals

    @property
    def bare_matcher(self) -> LLMatcher | None:
        """Whose mask alone says which tokens may come next; None where ``fill_mask`` has more to say."""
        return self._matcher.result()

    def fill_mask(self, masks: np.ndarray, index: int) -> None:
        """Write the tokens that may come next into row ``index`` of int32 [n, words]."""
        fill_next_token_bitmask(self._matcher.result(), masks, index)

    def accept(self, token_id: int) -> bool:
        """Advance by a drawn token; False when the grammar does not allow it."""
        return self._matcher.result().consume_token(token_id)

    def allowed_ids(self) -> set[int]:
        """The tokens that may come next. For explaining failures: ``fill_mask`` is the fast way."""
        bits = np.frombuffer(self._matcher.result().compute_bitmask(), np.uint8)
        return set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())

    def allows(self, token_id: int) -> bool:
        """Whether ``accept`` would take the token; changes nothing."""
        return self._matcher.result().validate_tokens([token_id]) == 1

    def restart(self) -> None:
        """Forget what was accepted."""
        self._matcher.result().reset()

    @property
    def constrains(self) -> bool:
        """Whether the next token needs a mask at all."""
        return True

    @property
    def complete(self) -> bool:
        """Nothing more can be added to the output."""
        return self._matcher.result().is_stopped()


class GrammarFactory:
    """Makes matchers for a model's vocabulary. The tokenizer is prepared when the first request needs it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(_num_threads(MAX_MAKING_THREADS), thread_name_prefix="grammar")
        spare_threads = ThreadPoolExecutor(1, thread_name_prefix="grammars-ahead")
        self._supply = MatcherSupply(self._make, self._threads, spare_threads)
        self._marks: dict[tuple[str, str], MarkTokens] = {}
        self._vocabulary_lock = Lock()

    def make(self, grammar: str | None, thinking: Thinking | None = None) -> SequenceGrammar | ThinkingGrammar:
        """A matcher for ``grammar`` (of ``compile_grammar``), perhaps behind thinking, under way on a thread. Without a
        grammar the thinking is all that it looks at.
        """
        bound = Unbound() if grammar is None else SequenceGrammar(self._supply.take(grammar))
        if thinking is None:
            return bound
        marks = self._threads.submit(self._find_marks, thinking.begin, thinking.end)
        return ThinkingGrammar(bound, thinking, marks, self._tokenizer.id_to_bytes)

    def _find_marks(self, begin: str, end: str) -> MarkTokens:
        if (begin, end) not in self._marks:
            self._marks[begin, end] = MarkTokens.find(begin.encode(), end.encode(), self._tokenizer, self.vocab_size)
        return self._marks[begin, end]

    def _make(self, grammar: str) -> LLMatcher:
        with self._vocabulary_lock:
            vocabulary = self._vocabulary
        return LLMatcher(vocabulary, grammar, log_level=0, limits=parser_limits())

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self.vocab_size))
        ends = [token_id for token_id in self._tokenizer.eos_token_ids if token_id < self.vocab_size]
        return LLTokenizer(wrapper, n_vocab=self.vocab_size, eos_token=ends or None)

    def masks(self, count: int) -> np.ndarray:
        """int32 [count, ceil(vocab_size / 32)], to be filled."""
        return np.empty((count, -(-self.vocab_size // 32)), np.int32)

    def fill(self, grammars: Sequence[SequenceGrammar | ThinkingGrammar], masks: np.ndarray) -> None:
        """Write the mask of each of ``grammars`` into its row of ``masks`` int32 [n, ceil(vocab_size / 32)], by several
        threads when there are many.
        """
        matchers = [grammar.bare_matcher for grammar in grammars]
        bare = [(matcher, i) for i, matcher in enumerate(matchers) if matcher is not None]
        if len(bare) < PARALLEL_FROM or self._mask_threads is None:
            bare = []
        else:
            fill_next_token_bitmask_par(self._mask_threads, bare, masks)
        filled = {i for _, i in bare}
        for i, grammar in enumerate(grammars):
            if i not in filled:
                grammar.fill_mask(masks, i)

    @cached_property
    def _mask_threads(self) -> LLExecutor | None:
        """None on a machine whose few cores have other work."""
        num_threads = _num_threads(MAX_MASK_THREADS)
        return LLExecutor(num_threads=num_threads) if num_threads > 1 else None


def _num_threads(most: int) -> int:
    return max(1, min(most, len(os.sched_getaffinity(0)) // 2))


class _Vocabulary:
    """A tokenizer as llguidance wants it: the bytes of every id, and how to encode."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else 0
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.id_to_bytes(token_id) for token_id in range(vocab_size)]
        self._encode_short = lru_cache(maxsize=4096)(self._encode)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of what a grammar leaves no choice about, such as a key: mostly the same short texts."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode_short(text) if len(text) <= MAX_REMEMBERED_CHARS else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        """Without special tokens, which no grammar allows: cut behind its first character, the name of one is text like
        any other.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._tokenizer.special_ids.isdisjoint(ids):
            return ids
        ids, at = [], 0
        while (name := self._special_names.search(text, at)) is not None:
            ids += self._tokenizer.encode(text[at : name.start() + 1], add_special_tokens=False)
            at = name.start() + 1
        return ids + self._tokenizer.encode(text[at:], add_special_tokens=False)

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        names = {self._tokenizer.id_to_bytes(i).decode("utf-8", "replace") for i in self.special_token_ids} - {""}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        return re.compile("|".join(longest_first) or "(?!)")  # without any: what matches nothing
