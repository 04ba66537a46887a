"""Thinking before the answer: a run of text between two marks at the very beginning, as reasoning models write it.

Whether the model thinks at all, and whether the first mark is already part of the prompt, is seen from the rendered
prompt; which marks there are is seen from the chat template. White space around the marks belongs to nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.sampling_params import Thinking
from pyengine.text.answer_parts import Content, Part, Reasoning, append
from pyengine.text.stop_strings import StopAutomaton
from pyengine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReasoningFormat:
    """The marks. A template of the family contains ``end``: it takes old thinking out of the history."""

    begin: str
    end: str


FORMATS = (ReasoningFormat("<think>", "</think>"), ReasoningFormat("[THINK]", "[/THINK]"))


def find_reasoning_format(template: str) -> ReasoningFormat | None:
    return next((each for each in FORMATS if each.end in template), None)


class Place(enum.Enum):
    """Where an answer begins."""

    BEFORE = "before"  # the model may open its thinking
    INSIDE = "inside"
    BEHIND = "behind"


def find_place(reasoning: ReasoningFormat, prompt: str, continued: str = "") -> Place:
    """``continued``: the beginning of the answer itself, where the prompt ends with that."""
    if continued.strip():
        return Place.INSIDE if continued.rfind(reasoning.begin) > continued.rfind(reasoning.end) else Place.BEHIND
    prompt = prompt.rstrip()
    if prompt.endswith(reasoning.begin):
        return Place.INSIDE
    return Place.BEHIND if prompt.endswith(reasoning.end) else Place.BEFORE


def thinking_before(
    reasoning: ReasoningFormat | None, prompt: str, budget: int | None = None, continued: str = ""
) -> Thinking | None:
    """What an answer to this prompt may begin with before a grammar binds it: nothing once the prompt ended it.
    ``budget``: tokens of it at most.
    """
    place = Place.BEHIND if reasoning is None else find_place(reasoning, prompt, continued)
    if place is Place.BEHIND:
        return None
    return Thinking(reasoning.begin, reasoning.end, place is Place.INSIDE, budget)


def num_tokens_inside(token_ids: Sequence[int], reasoning: ReasoningFormat, tokenizer: Tokenizer) -> int:
    """How many of an answer's tokens are thinking, the end mark included; all of them while there is none."""
    end, data = reasoning.end.encode(), bytearray()
    for count, token_id in enumerate(token_ids, 1):
        seen = max(0, len(data) - len(end) + 1)
        data += tokenizer.id_to_bytes(token_id)
        if data.find(end, seen) >= 0:
            return count
    return len(token_ids)


class ReasoningSplitter:
    """``push`` text, then ``finish`` once. ``began``: there is thinking; ``is_inside``: it has not ended."""

    def __init__(self, reasoning: ReasoningFormat, inside: bool):
        self.began = inside
        self.is_inside = inside
        self._format = reasoning
        self._end = StopAutomaton((reasoning.end,))
        self._held = ""
        self._at_start = not inside
        self._trims = inside  # white space that comes now is dropped

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        if self._at_start:
            text = self._open(text)
        if self.is_inside:
            text = self._think(text, parts)
        if not self.is_inside and not self._at_start:
            append(parts, Content(self._trimmed(text)))
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if not self.is_inside:
            return [Content(held)] if held else []
        said = held.rstrip()
        return [Reasoning(said)] if said else []

    def _open(self, text: str) -> str:
        """Look for the first mark behind white space; returns the text that comes after the decision."""
        held = self._held + text
        begun, mark = held.lstrip(), self._format.begin
        if len(begun) < len(mark) and mark.startswith(begun):
            self._held = held
            return ""
        self._held, self._at_start = "", False
        if not begun.startswith(mark):
            return held
        self.began = self.is_inside = self._trims = True
        return begun[len(mark) :]

    def _think(self, text: str, parts: list[Part]) -> str:
        """Thinking as far as it goes; returns what follows its end."""
        found = self._end.feed(text)
        rest = text if found is None else text[: found[1]]
        held = self._held + self._trimmed(rest)
        if found is not None:
            append(parts, Reasoning(held[: -len(found[0])].rstrip()))
            self._held, self.is_inside, self._trims = "", False, True
            return text[found[1] :]
        settled = held[: len(held) - self._end.num_pending].rstrip()
        self._held = held[len(settled) :]
        append(parts, Reasoning(settled))
        return ""

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text
