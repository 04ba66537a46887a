"""What the document says of each route beside its path and method, by the endpoint's name in Flask.

A route that is missing here is in the document all the same, without words; a test asks for the words.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pyengine.text.anthropic import CountRequest, MessagesRequest
from pyengine.text.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from pyengine.text.responses import ResponsesRequest
from server.dashboard import FILES
from server.openapi import answers

Struct = type[msgspec.Struct]


@dataclass(frozen=True)
class Operation:
    """A route's words and shapes.

    Attributes:
        body: what a POST takes.
        answer: the shape of a 200, or the type of a body that is no JSON.
        event: the shape of an event's data when the answer is streamed.
        error: the shape of a failure.
        statuses: of failures that this route has besides those that all have.
    """

    summary: str
    answer: Struct | str | None = None
    body: Struct | None = None
    event: Struct | None = None
    error: Struct = answers.Error
    statuses: tuple[int, ...] = ()


_GENERATING = (400, 404, 413, 415, 429, 500, 503)
_COMPUTING = (400, 404, 413, 415, 503)
_ANTHROPIC = {"error": answers.AnthropicError}

OPERATIONS: dict[str, Operation] = {
    "chat.create": Operation(
        "Answer to messages, plain or streamed",
        answers.ChatCompletion,
        ChatRequest,
        answers.ChatCompletionChunk,
        statuses=_GENERATING,
    ),
    "completions.create": Operation(
        "Continuation of prompts, plain or streamed",
        answers.Completion,
        CompletionRequest,
        answers.Completion,
        statuses=_GENERATING,
    ),
    "embeddings.create": Operation(
        "Vectors of texts", answers.EmbeddingList, EmbeddingRequest, statuses=_GENERATING
    ),
    "responses.create": Operation(
        "OpenAI's Responses API without state",
        answers.ResponseObject,
        ResponsesRequest,
        answers.ResponseEvent,
        statuses=_GENERATING,
    ),
    "messages.create": Operation(
        "Anthropic's Messages API, plain or streamed",
        answers.AnthropicMessage,
        MessagesRequest,
        answers.AnthropicEvent,
        statuses=_GENERATING,
        **_ANTHROPIC,
    ),
    "messages.count_tokens": Operation(
        "How many tokens the prompt of a message has",
        answers.TokenCount,
        CountRequest,
        statuses=_COMPUTING,
        **_ANTHROPIC,
    ),
    "models.list_models": Operation("The served model in a list", answers.ModelList, statuses=(503,)),
    "models.get_model": Operation("The served model", answers.Model, statuses=(404, 503)),
    "tokenize.tokenize": Operation("Text to ids", answers.Tokens, TokenizeRequest, statuses=_COMPUTING),
    "tokenize.detokenize": Operation("Ids to text", answers.Detokenized, DetokenizeRequest, statuses=_COMPUTING),
    "ops.health": Operation("200 while the process lives", "text/plain"),
    "ops.ready": Operation("200 while requests are taken", answers.Status, statuses=(503,)),
    "ops.version": Operation("The version of the server", answers.Version),
    "ops.metrics": Operation("Metrics as Prometheus text", "text/plain"),
    **{
        f"dashboard.{name}": Operation("The metrics, drawn live" if name == "page" else "A file of that page", kind)
        for name, (_, kind) in FILES.items()
    },
    "openapi.document": Operation("This document", "application/json"),
}
