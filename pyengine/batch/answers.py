"""What a batch knows of each endpoint: how its bodies are prepared, and the shape of its answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyengine.errors import RequestError
from pyengine.text.generation import Generation
from pyengine.text.processor import TextProcessor
from pyengine.text.validation import PreparedRequest
from server.anthropic.shapes import MessageShapes
from server.anthropic.shapes import error_body as anthropic_error_body
from server.openai import responses
from server.openai.embedding_shapes import embedding_list
from server.openai.error_shapes import error_body
from server.openai.response_shapes import ResponseShapes

Whole = Callable[[list[Generation]], dict[str, Any]]
Prepare = Callable[[bytes], tuple[PreparedRequest, Whole]]
ErrorBody = Callable[[RequestError], dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """``prepare`` checks a body (RequestError) and gives the function that makes the answer from the generations."""

    prepare: Prepare
    error: ErrorBody


def endpoints(text: TextProcessor, model: str) -> dict[str, Endpoint]:
    """By the ``url`` of a line."""

    def chat(body: bytes) -> tuple[PreparedRequest, Whole]:
        prepared = text.chat(body)
        return prepared, _with_usage(responses.ChatShapes(model, prepared, text), prepared)

    def completion(body: bytes) -> tuple[PreparedRequest, Whole]:
        prepared = text.completion(body)
        return prepared, _with_usage(responses.CompletionShapes(model, prepared, text), prepared)

    def response(body: bytes) -> tuple[PreparedRequest, Whole]:
        asked, prepared = text.responses(body)
        form, count = prepared.form.message, prepared.num_prompt_tokens
        return prepared, lambda generations: ResponseShapes(model, asked, form, generations[0], count).whole()

    def message(body: bytes) -> tuple[PreparedRequest, Whole]:
        prepared = text.anthropic(body)
        form, count = prepared.form.message, prepared.num_prompt_tokens
        return prepared, lambda generations: MessageShapes(model, form, generations[0], count).whole()

    def embedding(body: bytes) -> tuple[PreparedRequest, Whole]:
        asked, prepared = text.embeddings(body)
        count = prepared.num_prompt_tokens
        return prepared, lambda generations: embedding_list(model, asked, generations, count)

    return {
        "/v1/chat/completions": Endpoint(chat, _openai_error),
        "/v1/completions": Endpoint(completion, _openai_error),
        "/v1/embeddings": Endpoint(embedding, _openai_error),
        "/v1/responses": Endpoint(response, _openai_error),
        "/v1/messages": Endpoint(message, _anthropic_error),
    }


def _with_usage(shapes: responses.ChatShapes | responses.CompletionShapes, prepared: PreparedRequest) -> Whole:
    def whole(generations: list[Generation]) -> dict[str, Any]:
        answer = shapes.whole(generations)
        num_output = sum(generation.num_output_tokens for generation in generations)
        num_cached = sum(generation.num_cached_tokens for generation in generations if generation.index == 0)
        answer["usage"] = responses.usage(prepared.num_prompt_tokens, num_output, num_cached)
        if shapes.num_reasoning_tokens is not None:
            answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": shapes.num_reasoning_tokens}
        return answer

    return whole


def _openai_error(error: RequestError) -> dict[str, Any]:
    return error_body(error.message, error.status, error.param, error.code)


def _anthropic_error(error: RequestError) -> dict[str, Any]:
    return anthropic_error_body(error.message, error.status)


def answered(custom_id: str, status: int, body: dict[str, Any], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """The output line of a request that was answered or refused, as over HTTP."""
    response: dict[str, Any] = {"status_code": status, "request_id": f"req-{secrets.token_hex(16)}", "body": body}
    if ignored:
        response["ignored_fields"] = list(ignored)
    return {**_head(custom_id), "response": response, "error": None}


def unreadable(custom_id: str | None, number: int, code: str, message: str) -> dict[str, Any]:
    """The output line of a line that is no request."""
    return {**_head(custom_id), "response": None, "error": {"code": code, "message": message, "line": number}}


def _head(custom_id: str | None) -> dict[str, Any]:
    return {"id": f"batch_req_{secrets.token_hex(16)}", "custom_id": custom_id}
