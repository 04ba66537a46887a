"""Every field of the completion endpoints, as data: what is taken, what is ignored on purpose, what is not there yet.

A field is in exactly one place: a struct (taken and typed), ``IGNORED`` (OpenAI defines it, it means nothing to a
server of one model), or ``NOT_YET`` (known, refused unless it has a value that asks for nothing). All others are
unknown and refused by name. ``null`` always means not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cache
from typing import Any, Literal

import msgspec

from pyengine.errors import RequestError
from pyengine.text.effort import Effort
from pyengine.text.unknown_fields import known_only, unknown_field


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis; ours carries none


class _Common(msgspec.Struct, kw_only=True):
    """What both endpoints take; None where the checkpoint's default or none applies."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    n: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int = 0
    cache_salt: str = ""


class ChatRequest(_Common, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None  # scalars
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True
    thinking_token_budget: int | None = None


class CompletionRequest(_Common, kw_only=True):
    """The body of /v1/completions; prompt is a string, strings, token ids, or lists of token ids."""

    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool = False


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /tokenize: a prompt, or messages and what the chat template takes."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # scalars


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /detokenize."""

    tokens: list[int]
    model: str | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/embeddings; input as the prompt of a completion."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    priority: int = 0
    cache_salt: str = ""


IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "prompt_cache_options".split()
)

# Field to the values that ask for nothing.
_NOT_YET_COMMON: dict[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "truncation_side": ("left",),
}
_NOT_YET_CHAT: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "documents": ([],),
    "chat_template": (),
}
_NOT_YET_COMPLETION: dict[str, tuple[Any, ...]] = {"suffix": ("",), "prompt_embeds": ()}

NOT_YET: dict[type[msgspec.Struct], dict[str, tuple[Any, ...]]] = {
    ChatRequest: {**_NOT_YET_COMMON, **_NOT_YET_CHAT},
    CompletionRequest: {**_NOT_YET_COMMON, **_NOT_YET_COMPLETION},
    TokenizeRequest: {},
    DetokenizeRequest: {},
    EmbeddingRequest: {},
}


def select_fields(body: dict[str, Any], endpoint: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that ``endpoint`` takes; raises RequestError for unknown ones and for those not supported yet."""
    return select(body, endpoint, NOT_YET[endpoint], IGNORED)


def select(
    body: Mapping[str, Any],
    endpoint: type[msgspec.Struct],
    refused: Mapping[str, tuple[Any, ...]],
    ignored: Set[str],
    refusal: str = "is not supported yet",
) -> dict[str, Any]:
    """The fields of a body that ``endpoint`` takes and that are not null.

    Args:
        refused: known fields to the values that ask for nothing; any other value raises RequestError.
        ignored: fields that pass without effect. All others are unknown, see ``unknown_fields``.
    """
    taken = _names(endpoint)
    chosen = {}
    for name, value in body.items():
        if name in taken:
            if value is not None:
                chosen[name] = value
        elif name in refused:
            if value is not None and not any(_same(value, neutral) for neutral in refused[name]):
                raise RequestError(f"{name} {refusal} (got {value!r:.80})", param=name)
        elif name not in ignored:
            unknown_field(name, f"unknown field {name!r:.80}", param=name[:80])
    if isinstance(chosen.get("stream_options"), dict):
        chosen["stream_options"] = known_only(chosen["stream_options"], _names(StreamOptions), "stream_options")
    return chosen


@cache
def _names(struct: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(struct.__struct_fields__)


def _same(value: object, neutral: object) -> bool:
    """Equality that does not take false for 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
