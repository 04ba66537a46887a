"""One sequence from token deltas to text deltas, without I/O.

The engine speaks ids and knows lengths, end-of-sequence and stop tokens. This is where ids become text, where stop
strings end a sequence (the caller then aborts the request in the engine), and where the reason that a client sees is
decided. Text that may still turn out to be the beginning of a stop string is held back; all other text leaves at once.

Log-probabilities leave with the text that their token begins; a stop string that cuts text cuts them too.

The result depends on the tokens alone, not on how they were grouped into deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from pyengine.protocol import FinishReason, TokenDelta, TokenLogprob
from pyengine.sampling_params import SamplingParams
from pyengine.text.detokenizer import Detokenizer
from pyengine.text.stop_strings import StopAutomaton
from pyengine.text.tokenizer import Tokenizer


class ScoredToken(msgspec.Struct, frozen=True):
    """A token with its log-probabilities (None at the first of a prompt); ``offset``: characters of the answer's text
    before it.
    """

    token_id: int
    offset: int
    logprob: TokenLogprob | None


class TextDelta(msgspec.Struct, frozen=True):
    """What one push added.

    Attributes:
        text: may be empty while text is held back.
        token_ids: the ids that were taken, stop and end-of-sequence tokens included.
        finish_reason: "stop", "length", "abort" or "error" in the last delta, else None.
        stop_reason: the stop string or the id of the stop token; None for end of sequence.
        abort: a stop string ended the sequence here while the engine still runs it; the caller must abort it there.
        error: text when finish_reason is "error".
        scored: tokens with log-probabilities, when they were asked for.
    """

    text: str
    token_ids: Sequence[int] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    abort: bool = False
    error: str | None = None
    scored: Sequence[ScoredToken] = ()


@dataclass
class Generation:
    """The growing answer of one sequence. ``token_ids`` and ``text`` hold all of it so far.

    Attributes:
        score_all: log-probabilities for every id, not only for those that became text.
        shown_ids: special tokens that are text whatever skip_special_tokens says: marks that a parser looks for.
        logprobs: one for each of ``token_ids`` when they were asked for.
        scored: those of them that have left.
        prompt_logprobs: of the prompt from its second token on, all there before the first token; only at the first of
            n sequences.
        embedding: what came instead of tokens, where a pooled vector was asked for.
    """

    tokenizer: Tokenizer
    params: SamplingParams
    prompt_token_ids: Sequence[int] = ()
    index: int = 0
    score_all: bool = False
    shown_ids: frozenset[int] = frozenset()
    token_ids: list[int] = field(default_factory=list, init=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, init=False)
    scored: list[ScoredToken] = field(default_factory=list, init=False)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list, init=False)
    embedding: bytes | None = field(default=None, init=False)
    finish_reason: str | None = field(default=None, init=False)
    stop_reason: str | int | None = field(default=None, init=False)
    error: str | None = field(default=None, init=False)
    num_cached_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        skip = self.params.skip_special_tokens
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt_token_ids, skip, self.shown_ids)
        self._stops = StopAutomaton(self.params.stop) if self.params.stop else None
        self._wants_logprobs = self.params.logprobs is not None
        self._held = ""
        self._pieces: list[str] = []
        self._num_chars_decoded = 0  # counted only for log-probabilities, as the next two are
        self._num_chars_left = 0
        self._offsets: list[int] = []  # of each of token_ids: characters decoded before it

    @property
    def text(self) -> str:
        """All text that has left so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def push(self, delta: TokenDelta) -> TextDelta:
        """Take a delta of the engine; once finished, further deltas add nothing."""
        if self.finish_reason is not None:
            return TextDelta("")
        if not self.token_ids:
            self.num_cached_tokens = delta.num_cached_tokens
            self.prompt_logprobs += delta.prompt_logprobs or ()
            self.embedding = delta.embedding
        # A stop token is counted but is no text, unless stops are to be seen.
        hides_last = delta.stop_token_id is not None and not self.params.include_stop_str_in_output
        visible = delta.token_ids[:-1] if hides_last else delta.token_ids
        text, num_taken, stop = self._take(visible)
        if stop is not None:
            taken = visible[:num_taken]
            self._keep(delta, num_taken)
            self.finish_reason, self.stop_reason = FinishReason.STOP.value, stop
            return self._emit(text, taken, abort=delta.finish_reason is None)
        self._keep(delta, len(delta.token_ids))
        if delta.finish_reason is None:
            return self._emit(text, delta.token_ids)
        return self._finish(delta, text, num_hidden=len(delta.token_ids) - len(visible))

    def _keep(self, delta: TokenDelta, num_taken: int) -> None:
        self.token_ids += delta.token_ids if num_taken == len(delta.token_ids) else delta.token_ids[:num_taken]
        if self._wants_logprobs:
            self.logprobs.extend((delta.logprobs or ())[:num_taken])
            self._offsets.extend([self._num_chars_decoded] * (len(self.logprobs) - len(self._offsets)))

    def _finish(self, delta: TokenDelta, text: str, num_hidden: int) -> TextDelta:
        """End with the engine's reason, after whatever text was still held back."""
        tail, stop = self._search(self._detokenizer.finish(), len(self.token_ids))
        self.finish_reason, self.error = delta.finish_reason.value, delta.error
        if stop is not None:
            self.finish_reason, self.stop_reason, self.error = FinishReason.STOP.value, stop, None
        elif delta.stop_token_id in self.params.stop_token_ids:
            self.stop_reason = delta.stop_token_id
        held, self._held = self._held, ""
        num_scored = None if stop is not None else len(self.logprobs) - num_hidden
        return self._emit(text + tail + held, delta.token_ids, num_scored=num_scored)

    def _emit(
        self, text: str, token_ids: Sequence[int], abort: bool = False, num_scored: int | None = None
    ) -> TextDelta:
        if text:
            self._pieces.append(text)
        scored = self._score(text, num_scored) if self._wants_logprobs else ()
        return TextDelta(text, token_ids, self.finish_reason, self.stop_reason, abort, self.error, scored)

    def _score(self, text: str, num_scored: int | None) -> list[ScoredToken]:
        """Log-probabilities that leave now: up to ``num_scored`` tokens, or those that begin within the text so far."""
        self._num_chars_left += len(text)
        start = end = len(self.scored)
        if self.score_all:
            end = len(self.logprobs)
        elif num_scored is not None:
            end = max(start, num_scored)
        else:
            while end < len(self.logprobs) and self._offsets[end] < self._num_chars_left:
                end += 1
        new = [ScoredToken(self.token_ids[i], self._offsets[i], self.logprobs[i]) for i in range(start, end)]
        self.scored += new
        return new

    def _take(self, token_ids: Sequence[int]) -> tuple[str, int, str | None]:
        """Text of these ids, how many of them were used, and the stop string that ended it, if any."""
        if self._stops is None and not self._wants_logprobs:
            return self._detokenizer.push(token_ids), len(token_ids), None
        if len(token_ids) == 1 and not self._wants_logprobs:
            text, stop = self._search(self._detokenizer.push_one(token_ids[0]), len(self.token_ids) + 1)
            return text, 1, stop
        out = []
        for position, token_id in enumerate(token_ids):
            decoded = self._detokenizer.push_one(token_id)
            self._offsets.append(self._num_chars_decoded)
            self._num_chars_decoded += len(decoded)
            text, stop = self._search(decoded, len(self.token_ids) + position + 1)
            out.append(text)
            if stop is not None:
                return "".join(out), position + 1, stop
        return "".join(out), len(token_ids), None

    def _search(self, new_text: str, num_tokens: int) -> tuple[str, str | None]:
        """Text that may leave and the stop string found. Matches within the first min_tokens tokens do not count."""
        stops, start = self._stops, 0
        if stops is None:
            return new_text, None
        while (found := stops.feed(new_text[start:])) is not None:
            stop, end = found[0], start + found[1]
            if num_tokens > self.params.min_tokens:
                text = self._held + new_text[:end]
                self._held = ""
                return (text if self.params.include_stop_str_in_output else text[: len(text) - len(stop)]), stop
            stops.decline()
            start = end
        if not self._held and not stops.num_pending:
            return new_text, None
        text = self._held + new_text
        split = len(text) - stops.num_pending
        self._held = text[split:]
        return text[:split], None
