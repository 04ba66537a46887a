"""Every sequence has a matcher of its own, whatever becomes of others with the same grammar; some wait ready for
grammars that come again.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from threading import Event

import numpy as np
import pytest
from text_helpers import bpe_tokenizer

from pyengine.structured import supply
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory, SequenceGrammar

DIGITS = compile_grammar({"regex": "[0-9]{3}"})
WORDS = compile_grammar({"choice": ["ja", "nein"]})
TOKENIZER = bpe_tokenizer()


@pytest.fixture
def factory(monkeypatch) -> GrammarFactory:
    factory = GrammarFactory(TOKENIZER, TOKENIZER.vocab_size)
    factory.made = []
    make = factory._supply._make
    monkeypatch.setattr(factory._supply, "_make", lambda grammar: (factory.made.append(grammar), make(grammar))[1])
    return factory


def waiting(factory: GrammarFactory, grammar: str) -> int:
    """Matchers that wait for the next who come, all of them made."""
    futures = factory._supply._ahead[grammar]
    wait(futures)
    return len(futures)


def mask(grammar: SequenceGrammar) -> set[int]:
    assert not grammar.error
    return grammar.allowed_ids()


def test_one_that_grows_too_large_ends_alone(factory):
    """The automaton of this one doubles with every position that it has to remember, up to its limit."""
    grammar = compile_grammar({"regex": ".*a.{18}"})
    hungry, other = factory.make(grammar), factory.make(grammar)
    letters = [TOKENIZER.encode(letter, add_special_tokens=False)[0] for letter in "ab"]
    before, masks, rng = mask(other), factory.masks(1), np.random.default_rng(0)
    begin = time.monotonic()
    while hungry.accept(int(rng.choice(letters))) and not hungry.error:
        hungry.fill_mask(masks, 0)
        assert time.monotonic() - begin < 60, "it never reached the limit: the case is no hard one"
    assert "too many states" in hungry.error
    assert mask(other) == before and other.accept(letters[0]) and not other.error
    assert mask(factory.make(grammar)) == before


def test_they_go_their_own_ways(factory):
    first, second = factory.make(DIGITS), factory.make(DIGITS)
    before, token_id = mask(second), min(mask(first))
    while not first.complete:
        assert first.accept(min(mask(first)))
    assert mask(second) == before and not second.complete
    assert second.accept(token_id) and mask(factory.make(DIGITS)) == before
    second.restart()
    assert mask(second) == before


def test_a_grammar_that_comes_once_is_made_once(factory):
    assert mask(factory.make(DIGITS)) != mask(factory.make(WORDS))
    assert factory.made == [DIGITS, WORDS] and not waiting(factory, DIGITS)


def test_who_comes_again_does_not_wait(factory):
    crowd = [factory.make(DIGITS) for _ in range(20)]
    assert [mask(grammar) == mask(crowd[0]) != set() for grammar in crowd] == [True] * 20
    for _ in range(6):
        assert waiting(factory, DIGITS) == supply.AHEAD
        assert factory.make(DIGITS).ready
    assert waiting(factory, DIGITS) == supply.AHEAD
    assert len({id(grammar.bare_matcher) for grammar in crowd}) == 20
    assert factory.made == [DIGITS] * (26 + supply.AHEAD)


def test_nobody_waits_for_one_that_is_made_ahead(factory):
    held = Event()
    for _ in range(2):
        mask(factory.make(DIGITS))
    waiting(factory, DIGITS)
    blocked = factory._supply._spare_threads.submit(held.wait)
    for _ in range(supply.AHEAD + 3):  # more than there are, while no more are made
        mask(factory.make(DIGITS))
    held.set()
    blocked.result()
    assert waiting(factory, DIGITS) == supply.AHEAD


def test_the_longest_unused_goes_first(factory, monkeypatch):
    monkeypatch.setattr(supply, "MAX_GRAMMARS", 2)
    grammars = [compile_grammar({"regex": f"a{{{n}}}"}) for n in (1, 2, 3)]
    for grammar in (grammars[0], grammars[0], grammars[1], grammars[1], grammars[0], grammars[2]):
        mask(factory.make(grammar))
    assert waiting(factory, grammars[0]) == supply.AHEAD, "used again before the third came"
    assert set(factory._supply._ahead) == {grammars[0], grammars[2]}


def test_a_failure_is_everybodys_own(factory, monkeypatch):
    def fail(grammar):
        raise ValueError("no such thing")

    monkeypatch.setattr(factory._supply, "_make", fail)
    for _ in range(3):
        assert "no such thing" in factory.make("{}").error
