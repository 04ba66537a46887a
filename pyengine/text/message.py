"""The answer to a chat: its text taken apart into thinking, content and calls of tools, whole or as it arrives."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyengine.text.answer_parts import CallArguments, CallBegin, Content, Part, Reasoning, append
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.reasoning import ReasoningFormat, ReasoningSplitter, num_tokens_inside
from pyengine.text.tool_formats import ToolFormat
from pyengine.text.tool_parser import ToolCallParser


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What to look for in an answer.

    Attributes:
        tools: how the model writes calls; None when it was offered no tools.
        tool_names: of the tools that it was offered.
        names_tool: the request named the tool to call.
        parallel_tool_calls: whether calls after the first one count.
        reasoning: how it marks its thinking; None when it does not think or nobody wants to tell.
        inside_reasoning: the prompt has opened the thinking.
        shows_reasoning: whether the thinking is part of the message; it is taken out of the content in any case.
    """

    tools: ToolFormat | None = None
    tool_names: frozenset[str] = frozenset()
    names_tool: bool = False
    parallel_tool_calls: bool = True
    reasoning: ReasoningFormat | None = None
    inside_reasoning: bool = False
    shows_reasoning: bool = True

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must be seen even where they are special tokens."""
        reasoning = (self.reasoning.begin, self.reasoning.end) if self.reasoning is not None else ()
        return (*reasoning, *(self.tools.marks if self.tools is not None else ()))


@dataclass
class ToolCall:
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """JSON text."""
        return "".join(self.pieces)


@dataclass
class Message:
    """One choice's message as it grows. ``push`` every delta of the generation; the last one finishes it."""

    form: MessageForm
    generation: Generation
    calls: list[ToolCall] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        form = self.form
        self._splitter = ReasoningSplitter(form.reasoning, form.inside_reasoning) if form.reasoning else None
        self._calls = ToolCallParser(form.tools, form.tool_names, form.parallel_tool_calls) if form.tools else None
        self._num_reasoning_tokens: int | None = None  # known once the thinking has ended
        self._texts: dict[type, list[str]] = {Content: [], Reasoning: []}

    @property
    def content(self) -> str:
        return "".join(self._texts[Content])

    @property
    def reasoning(self) -> str:
        return "".join(self._texts[Reasoning])

    @classmethod
    def whole(cls, form: MessageForm, generation: Generation) -> Message:
        """The message of a finished generation."""
        message = cls(form, generation)
        message.push(TextDelta(generation.text, finish_reason=generation.finish_reason))
        return message

    def take_plain(self, text: str) -> bool:
        """Take text that can be nothing but content; False, and nothing taken, where an answer is taken apart."""
        if self._splitter is not None or self._calls is not None:
            return False
        self._texts[Content].append(text)
        return True

    def push(self, delta: TextDelta) -> list[Part]:
        """The parts that the delta adds."""
        parts: list[Part] = []
        pieces = self._splitter.push(delta.text) if self._splitter else [Content(delta.text)]
        if self._splitter and delta.finish_reason is not None:
            pieces += self._splitter.finish()
        for piece in pieces:
            for part in self._call_parts(piece):
                append(parts, part)
        if self._calls and delta.finish_reason is not None:
            for part in self._calls.finish():
                append(parts, part)
        if not self.form.shows_reasoning:
            parts = [part for part in parts if not isinstance(part, Reasoning)]
        for part in parts:
            self._collect(part)
        return parts

    def _call_parts(self, piece: Part) -> list[Part]:
        return self._calls.push(piece.text) if self._calls and isinstance(piece, Content) else [piece]

    def _collect(self, part: Part) -> None:
        if isinstance(part, CallBegin):
            self.calls.append(ToolCall(part.name))
        elif isinstance(part, CallArguments):
            self.calls[part.index].pieces.append(part.text)
        else:
            self._texts[type(part)].append(part.text)

    def finish_reason(self, reason: str) -> str:
        """``tool_calls`` when the model stopped behind calls that are whole."""
        return "tool_calls" if reason == "stop" and self.calls and self._calls.is_whole else reason

    @property
    def num_reasoning_tokens(self) -> int:
        splitter, ids = self._splitter, self.generation.token_ids
        if splitter is None or not splitter.began:
            return 0
        if splitter.is_inside:
            return len(ids)
        if self._num_reasoning_tokens is None:
            self._num_reasoning_tokens = num_tokens_inside(ids, self.form.reasoning, self.generation.tokenizer)
        return self._num_reasoning_tokens
