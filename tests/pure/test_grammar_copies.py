"""A grammar is compiled for the first who comes with it; later ones get copies, which know nothing of each other."""

from __future__ import annotations

import pytest
from text_helpers import bpe_tokenizer

from pyengine.structured import matcher
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory, SequenceGrammar

DIGITS = compile_grammar({"regex": "[0-9]{3}"})
WORDS = compile_grammar({"choice": ["ja", "nein"]})


@pytest.fixture
def factory(monkeypatch) -> GrammarFactory:
    made = []
    factory = GrammarFactory(bpe_tokenizer(), bpe_tokenizer().vocab_size)
    make = factory._make
    monkeypatch.setattr(factory, "_make", lambda grammar: (made.append(grammar), make(grammar))[1])
    factory.made = made
    return factory


def mask(grammar: SequenceGrammar) -> set[int]:
    assert not grammar.error
    return grammar.allowed_ids()


def test_one_compilation_serves_a_crowd(factory):
    crowd = [factory.make(DIGITS) for _ in range(20)]
    assert [mask(grammar) == mask(crowd[0]) != set() for grammar in crowd] == [True] * 20
    late = factory.make(DIGITS)
    assert late.ready, "nobody waits for a grammar that is there"
    assert factory.made == [DIGITS]
    assert mask(factory.make(WORDS)) != mask(late) and factory.made == [DIGITS, WORDS]


def test_copies_go_their_own_ways(factory):
    first, second = factory.make(DIGITS), factory.make(DIGITS)
    before, token_id = mask(second), min(mask(first))
    while not first.complete:
        assert first.accept(min(mask(first)))
    assert mask(second) == before and not second.complete
    assert second.accept(token_id) and mask(factory.make(DIGITS)) == before
    second.restart()
    assert mask(second) == before


def test_the_longest_unused_goes_first(factory, monkeypatch):
    monkeypatch.setattr(matcher, "MAX_KEPT", 2)
    grammars = [compile_grammar({"regex": f"a{{{n}}}"}) for n in (1, 2, 3)]
    for grammar in (grammars[0], grammars[1], grammars[0], grammars[2]):
        mask(factory.make(grammar))
    assert factory.made == grammars
    assert mask(factory.make(grammars[0])) and factory.made == grammars, "used again before the third came"
    assert mask(factory.make(grammars[1])) and factory.made == [*grammars, grammars[1]]


def test_a_failure_is_everybodys_own(factory, monkeypatch):
    def fail(grammar):
        raise ValueError("no such thing")

    monkeypatch.setattr(factory, "_make", fail)
    for _ in range(3):
        assert "no such thing" in factory.make("{}").error
