"""Grammars for an engine that may never need any: tokenizer and llguidance are loaded with the first request that
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from pyengine.sampling_params import Thinking
    from pyengine.structured.matcher import GrammarFactory, SequenceGrammar
    from pyengine.structured.thinking import ThinkingGrammar


class LazyGrammars:
    """A ``GrammarFactory`` in waiting, for the tokenizer at ``tokenizer_path``."""

    def __init__(self, tokenizer_path: str | Path, vocab_size: int):
        self._tokenizer_path = tokenizer_path
        self._vocab_size = vocab_size

    def make(self, grammar: str | None, thinking: Thinking | None = None) -> SequenceGrammar | ThinkingGrammar:
        return self._factory.make(grammar, thinking)

    def fill(self, grammars: Sequence[SequenceGrammar | ThinkingGrammar], masks: np.ndarray) -> None:
        self._factory.fill(grammars, masks)

    @cached_property
    def _factory(self) -> GrammarFactory:
        from pyengine.structured.matcher import GrammarFactory
        from pyengine.text.tokenizer import load_tokenizer

        return GrammarFactory(load_tokenizer(self._tokenizer_path), self._vocab_size)
