"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from flask import Blueprint, Response, request

from server.access import salted
from server.answer import Answer
from server.anthropic.shapes import PING, MessageShapes, error_body, event
from server.http import SOCKET_KEY, ClientWatch
from server.openai.errors import body_of, log_bug
from server.openai.generate import event_stream, read_body, wait_for
from server.openai.sse import KeepAlive
from server.request_id import ENVIRON_KEY
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("messages", __name__)

    @routes.post("/v1/messages")
    def create() -> Response:
        current = service()
        prepared = salted(current.prepare(current.text.anthropic, read_body()))
        answer = current.answer(prepared)
        shapes = MessageShapes(
            current.model_name, prepared.form.message, answer.generations[0], prepared.num_prompt_tokens
        )
        watch = ClientWatch(request.environ.get(SOCKET_KEY), answer.client_gone)
        if not prepared.stream:
            return _whole(answer, shapes, watch)
        request_id = request.environ.get(ENVIRON_KEY, "-")
        events = _stream(answer, shapes, watch, current.config.keep_alive_interval or None, request_id)
        return event_stream(events)

    @routes.post("/v1/messages/count_tokens")
    def count_tokens() -> Response:
        current = service()
        return _json({"input_tokens": current.prepare(current.text.anthropic_count, read_body())})

    return routes


def _whole(answer: Answer, shapes: MessageShapes, watch: ClientWatch) -> Response:
    wait_for(answer, watch)
    return _json(shapes.whole())


def _stream(
    answer: Answer, shapes: MessageShapes, watch: ClientWatch, keep_alive_s: float | None, request_id: str
) -> Iterator[bytes]:
    """Events of one answer: exactly one of ``message_stop`` and ``error`` ends them."""
    try:
        watch.start()
        yield event(shapes.opening())
        keep_alive = KeepAlive(keep_alive_s, PING)
        while not answer.finished:
            events = [each for _, delta in answer.next(keep_alive_s) for each in shapes.events(delta)]
            yield keep_alive(b"".join(map(event, events)))
    except ConnectionError:
        raise  # nobody is left to tell; a stream that breaks off is no whole one
    except Exception as error:
        log_bug(error, request_id)
        body, status = body_of(error)
        yield event(error_body(body["error"]["message"], status))
    finally:
        watch.stop()
        answer.close()


def _json(body: dict) -> Response:
    return Response(msgspec.json.encode(body), mimetype="application/json")
