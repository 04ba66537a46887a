"""What chat and completions share: read the body, submit, answer whole or as a stream of events.

A stream always ends with ``[DONE]``; an error after the first byte is an event of its own before it. Streamed and
plain answers come from the same deltas, so they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from flask import Response, request

from pyengine.errors import RequestError
from pyengine.text.processor import TextProcessor
from pyengine.text.validation import PreparedRequest
from server.access import salted
from server.answer import Answer
from server.http import SOCKET_KEY, ClientWatch
from server.openai.errors import body_of, log_bug
from server.openai.responses import ChatShapes, CompletionShapes
from server.openai.sse import DONE, KeepAlive, TextEvents, event
from server.request_id import ENVIRON_KEY
from server.service import Service
from server.threads import computed

Shapes = ChatShapes | CompletionShapes
LARGE_SCORES = 10_000  # a microsecond each: beyond it, an answer is put together where no stream waits for it


def generate(
    service: Service,
    parse: Callable[[bytes], PreparedRequest],
    make_shapes: Callable[[str, PreparedRequest, TextProcessor], Shapes],
) -> Response:
    """The body of both POST routes."""
    prepared = salted(service.prepare(parse, read_body()))
    answer = service.answer(prepared)
    shapes = make_shapes(service.model_name, prepared, service.text)
    watch = ClientWatch(request.environ.get(SOCKET_KEY), answer.client_gone)
    if prepared.stream:
        request_id = request.environ.get(ENVIRON_KEY, "-")
        events = _stream(answer, shapes, watch, service.config.keep_alive_interval or None, request_id)
        return event_stream(events)
    return _whole(answer, shapes, watch)


def read_body() -> bytes:
    """The bytes of a JSON body. Raises RequestError (415) for other types."""
    if request.mimetype not in ("application/json", ""):
        raise RequestError(f"Content-Type must be application/json, got {request.mimetype[:100]!r}", status=415)
    return request.get_data(cache=False)


def wait_for(answer: Answer, watch: ClientWatch) -> None:
    """Collect the whole answer, for as long as its client is there."""
    try:
        with watch:
            while not answer.finished:
                answer.next()
    finally:
        answer.close()


def event_stream(events: Iterator[bytes]) -> Response:
    """A response of server-sent events that no proxy may hold back."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(events, mimetype="text/event-stream", headers=headers, direct_passthrough=True)


def _whole(answer: Answer, shapes: Shapes, watch: ClientWatch) -> Response:
    wait_for(answer, watch)
    body = computed(_num_scores(answer.prepared) > LARGE_SCORES, _encoded, answer, shapes)
    return Response(body, mimetype="application/json")


def _encoded(answer: Answer, shapes: Shapes) -> bytes:
    whole = shapes.whole(answer.generations)
    whole["usage"] = _usage(answer, shapes)
    return msgspec.json.encode(whole)


def _num_scores(prepared: PreparedRequest) -> int:
    """Log-probabilities that a whole answer may have."""
    return sum(
        prompt.params.n * len(prompt.token_ids) * _each(prompt.params.prompt_logprobs)
        + prompt.params.n * (prompt.params.max_tokens or 0) * _each(prompt.params.logprobs)
        for prompt in prepared.prompts
    )


def _each(num_logprobs: int | None) -> int:
    return 0 if num_logprobs is None else num_logprobs + 1


def _stream(
    answer: Answer, shapes: Shapes, watch: ClientWatch, keep_alive_s: float | None, request_id: str
) -> Iterator[bytes]:
    """Events of one answer. The WSGI server closes this generator when the client goes, which ends in ``finally``."""
    texts: dict[int, TextEvents] = {}
    try:
        watch.start()
        for choice in range(len(answer.generations)):
            opening = shapes.opening(choice)
            if opening is not None:
                yield event(_with_usage(opening, answer, shapes))
        keep_alive = KeepAlive(keep_alive_s)
        while not answer.finished:
            yield keep_alive(b"".join(_events(answer, shapes, texts, keep_alive_s)))
        if answer.prepared.include_usage:
            yield event(shapes.usage_chunk(_usage(answer, shapes)))
        yield DONE
    except ConnectionError:
        raise  # nobody is left to tell; a stream that breaks off is no whole one
    except Exception as error:
        log_bug(error, request_id)
        yield event(body_of(error)[0])
        yield DONE
    finally:
        watch.stop()
        answer.close()


def _events(answer: Answer, shapes: Shapes, texts: dict[int, TextEvents], timeout_s: float | None) -> Iterator[bytes]:
    """``texts``: what makes the events of text alone, by choice; filled here."""
    for choice, delta in answer.next(timeout_s):
        generation = answer.generations[choice]
        text = None if answer.prepared.continuous_usage else shapes.text_alone(choice, generation, delta)
        if text is None:
            for chunk in shapes.chunks(choice, generation, delta):
                yield event(_with_usage(chunk, answer, shapes))
            continue
        if choice not in texts:
            texts[choice] = TextEvents(partial(_text_chunk, answer, shapes, choice))
        yield texts[choice](text)


def _text_chunk(answer: Answer, shapes: Shapes, choice: int, text: str) -> dict:
    return _with_usage(shapes.text_chunk(choice, text), answer, shapes)


def _with_usage(chunk: dict, answer: Answer, shapes: Shapes) -> dict:
    """``stream_options``: usage so far on every chunk (continuous), or null until the last one (include_usage)."""
    if answer.prepared.continuous_usage:
        chunk["usage"] = _usage(answer, shapes)
    elif answer.prepared.include_usage:
        chunk["usage"] = None
    return chunk


def _usage(answer: Answer, shapes: Shapes) -> dict:
    usage = answer.usage()
    num_reasoning = shapes.num_reasoning_tokens
    if num_reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
    return usage
