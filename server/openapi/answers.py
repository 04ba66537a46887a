"""The shapes of answers, for the document alone: routes write plain dictionaries, and a test holds them to this.

``Unset`` marks a key that is not always there; a key that may be null says so.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class _Shape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Keys other than these are never sent."""


class ErrorDetail(_Shape):
    message: str
    type: str
    param: str | None
    code: str | int | None


class Error(_Shape):
    """What every failure looks like, whatever the route."""

    error: ErrorDetail


class AnthropicErrorDetail(_Shape):
    type: str
    message: str


class AnthropicError(_Shape):
    """What failures of Anthropic's routes look like."""

    type: str
    error: AnthropicErrorDetail


class PromptTokensDetails(_Shape):
    cached_tokens: int


class CompletionTokensDetails(_Shape):
    reasoning_tokens: int


class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class TokenEntry(_Shape):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenEntry] | UnsetType = UNSET


class ChatLogprobs(_Shape):
    content: list[TokenEntry]


class FunctionCall(_Shape):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(_Shape):
    function: FunctionCall
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class AssistantMessage(_Shape):
    role: str
    content: str | None
    refusal: None
    reasoning: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(_Shape):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class PromptToken(_Shape):
    """What is said of a token of the prompt, or of one that might have stood there."""

    logprob: float
    rank: int
    decoded_token: str


class ChatCompletion(_Shape):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptToken] | None] | UnsetType = UNSET


class Delta(_Shape):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(_Shape):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(_Shape):
    """The data of one event of a streamed chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionLogprobs(_Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptToken] | None] | UnsetType = UNSET


class Completion(_Shape):
    """A completion, and the data of one event of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Embedding(_Shape):
    """A vector: numbers, or base64 of float32 in little-endian order."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Shape):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_Shape):
    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(_Shape):
    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(_Shape):
    object: str
    data: list[Model]


class MessageUsage(_Shape):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Block(_Shape):
    """A block of a message: text, thinking or tool_use."""

    type: str
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: dict[str, Any] | UnsetType = UNSET


class AnthropicMessage(_Shape):
    id: str
    type: str
    role: str
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class AnthropicEvent(msgspec.Struct, kw_only=True):
    """The data of one event of a streamed message; which other keys it has is a matter of its type."""

    type: str


class TokenCount(_Shape):
    input_tokens: int


class ResponseEvent(msgspec.Struct, kw_only=True):
    """The data of one event of a streamed response; which other keys it has is a matter of its type."""

    type: str
    sequence_number: int


class ResponseUsage(_Shape):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseItem(_Shape):
    """An item of the output: reasoning, message or function_call."""

    type: str
    id: str
    status: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    content: list[dict[str, Any]] | UnsetType = UNSET
    summary: list[Any] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ResponseObject(_Shape):
    id: str
    object: str
    created_at: int
    status: str
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[ResponseItem]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: str
    usage: ResponseUsage | None
    metadata: dict[str, str]


class Tokens(_Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Shape):
    prompt: str


class Status(_Shape):
    status: str


class Version(_Shape):
    version: str
