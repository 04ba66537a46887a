"""What a client may ask of one generation: frozen, validated, free of torch, sent as it is from server to engine.

The field names and meanings are those vLLM's users know. ``n`` sequences are drawn from one prompt; sequence i uses
``seed`` (or a random one) mixed with i, so that the same request gives the same n answers again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from pyengine.errors import RequestError

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 128
MAX_TOKENS = 1 << 24
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 1 << 18
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 32


class Thinking(msgspec.Struct, frozen=True):
    """Thinking that may come before the answer, told by its marks.

    Attributes:
        begin, end: the marks.
        inside: the prompt has opened it.
        budget: tokens between the marks after which the end mark is forced; None: no bound.
    """

    begin: str
    end: str
    inside: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            _check_int("thinking.budget", self.budget, 0, MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class Range:
    """The allowed values of a number; ``open_low`` leaves out ``low`` itself."""

    low: float
    high: float
    is_int: bool = False
    open_low: bool = False

    def check(self, name: str, value: object) -> None:
        """Raises RequestError with the field, the value and the range."""
        if self.is_int:
            _check_int(name, value, self.low, self.high)
        else:
            _check_float(name, value, self.low, self.high, self.open_low)


RANGES = {
    "n": Range(1, MAX_N, is_int=True),
    "temperature": Range(0.0, 100.0),
    "top_p": Range(0.0, 1.0, open_low=True),
    "top_k": Range(-1, (1 << 31) - 1, is_int=True),
    "min_p": Range(0.0, 1.0),
    "seed": Range(-(1 << 63), (1 << 63) - 1, is_int=True),
    "max_tokens": Range(0, MAX_TOKENS, is_int=True),
    "presence_penalty": Range(-2.0, 2.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(0.001, 10.0),  # it divides logits, and they must stay finite
    "logprobs": Range(0, MAX_LOGPROBS, is_int=True),
    "prompt_logprobs": Range(0, MAX_LOGPROBS, is_int=True),
    "truncate_prompt_tokens": Range(-1, MAX_TOKENS, is_int=True),
}
# None says something of its own here.
UNLESS_NONE = frozenset(("seed", "max_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens"))
TOKEN_ID = Range(0, (1 << 31) - 1, is_int=True)
BIAS = Range(-100.0, 100.0)
# The most entries of each list.
MAX_ENTRIES = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "allowed_token_ids": MAX_ALLOWED_TOKEN_IDS,
    "logit_bias": MAX_LOGIT_BIAS,
    "bad_words": MAX_BAD_WORDS,
    "bad_words_token_ids": 2 * MAX_BAD_WORDS,  # each with and without a space in front
}


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Parameters of a generation; the constructor raises ``RequestError`` on a value out of range.

    Attributes:
        n: sequences to generate for the prompt, 1..128.
        temperature: 0 is greedy; up to 100.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept; 0 or -1 keeps all.
        min_p: drop tokens less likely than min_p times the likeliest, in [0, 1].
        seed: 64-bit seed; None draws one per request.
        max_tokens: output tokens at most; None is what the context leaves, 0 computes the prompt alone.
        min_tokens: no end or stop before so many output tokens.
        stop: strings that end the text (not part of it unless include_stop_str_in_output).
        stop_token_ids: token ids that end the generation.
        ignore_eos: go on past the end-of-sequence token.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: either is the same: texts of tokens follow each other as their bytes say.
        presence_penalty, frequency_penalty: OpenAI's, over the generated tokens, in [-2, 2].
        repetition_penalty: over prompt and generated tokens, in [0.001, 10]; 1 is off.
        logit_bias: added to the logits of single tokens, each in [-100, 100].
        allowed_token_ids: the only tokens that may be drawn; None allows all.
        bad_words: texts that the output must not contain: the last token of one is not drawn behind the others.
        bad_words_token_ids: the same as token sequences; filled in from ``bad_words`` where there is a tokenizer.
        structured_outputs: what the output must match: one of json (a schema), json_object (True), regex, choice (a
            list of strings) and grammar (Lark). Becomes ``grammar`` where the request is checked.
        response_format: the same in OpenAI's form.
        grammar: the same as ``pyengine.structured.grammar.compile_grammar`` makes it.
        thinking: what may come before the output that ``grammar`` binds, and how long it may be.
        logprobs: report this many of the likeliest tokens at each output token (0: the drawn one alone); None: none.
        prompt_logprobs: the same at each token of the prompt but the first.
        truncate_prompt_tokens: keep only so many of the prompt's last tokens (-1: as many as leave room for
            max_tokens); None: all. Done, and None again, where the request is checked.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, (str, list)):  # the offline class takes what vLLM's takes
            msgspec.structs.force_setattr(
                self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            )
        for name in ("stop_token_ids", "allowed_token_ids", "bad_words"):
            if isinstance(getattr(self, name), list):
                msgspec.structs.force_setattr(self, name, tuple(getattr(self, name)))
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None or name not in UNLESS_NONE:
                allowed.check(name, value)
        _check_int("min_tokens", self.min_tokens, 0, MAX_TOKENS if self.max_tokens is None else self.max_tokens)
        _check_token_choices(self)
        _check_texts("stop", self.stop)
        _check_bad_words(self)
        _check_ids("stop_token_ids", self.stop_token_ids)

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def needs_matcher(self) -> bool:
        """Whether somebody must follow the output, token by token, to say what may come next."""
        return self.grammar is not None or (self.thinking is not None and self.thinking.budget is not None)

    @property
    def needs_history(self) -> bool:
        """Whether drawing depends on which tokens came before."""
        return self.has_penalties or bool(self.bad_words_token_ids)


def _check_token_choices(params: SamplingParams) -> None:
    if params.allowed_token_ids is not None:
        if not params.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty: no token could be drawn", param="allowed_token_ids")
        _check_ids("allowed_token_ids", params.allowed_token_ids)
    if params.logit_bias is None:
        return
    if not isinstance(params.logit_bias, dict):
        raise RequestError(
            f"logit_bias must map token ids to numbers, got {params.logit_bias!r:.80}", param="logit_bias"
        )
    if len(params.logit_bias) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias may have at most {MAX_LOGIT_BIAS} entries, got {len(params.logit_bias)}", param="logit_bias"
        )
    for token_id, bias in params.logit_bias.items():
        TOKEN_ID.check("logit_bias", token_id)
        BIAS.check("logit_bias", bias)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}", param=name)
    if not low <= value <= high:
        raise RequestError(f"{name} must be in [{low}, {high}], got {str(value)[:40]}", param=name)


def _check_float(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name} must be a number, got {value!r:.80}", param=name)
    if math.isnan(value) or value > high or value < low or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise RequestError(f"{name} must be in {bracket}{low:g}, {high:g}], got {str(value)[:40]}", param=name)


def _check_ids(name: str, values: object) -> None:
    _check_count(name, values, MAX_ENTRIES[name])
    for token_id in values:
        TOKEN_ID.check(name, token_id)


def _check_count(name: str, values: object, limit: int) -> None:
    if not isinstance(values, tuple):
        raise RequestError(f"{name} must be a list, got {values!r:.80}", param=name)
    if len(values) > limit:
        raise RequestError(f"{name} may have at most {limit} entries, got {len(values)}", param=name)


def _check_texts(name: str, texts: object) -> None:
    _check_count(name, texts, MAX_ENTRIES[name])
    for text in texts:
        if not isinstance(text, str) or not text:
            raise RequestError(f"{name} must be non-empty strings, got {text!r:.80}", param=name)


def _check_bad_words(params: SamplingParams) -> None:
    _check_texts("bad_words", params.bad_words)
    _check_count("bad_words_token_ids", params.bad_words_token_ids, MAX_ENTRIES["bad_words_token_ids"])
    for word in params.bad_words_token_ids:
        _check_count("bad_words_token_ids", word, MAX_BAD_WORD_TOKENS)
        if not word:
            raise RequestError("bad_words_token_ids has an empty sequence", param="bad_words_token_ids")
        for token_id in word:
            _check_int("bad_words_token_ids", token_id, 0, (1 << 31) - 1)
