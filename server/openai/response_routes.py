"""``POST /v1/responses``, stateless."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from flask import Blueprint, Response, request

from server.access import salted
from server.answer import Answer
from server.http import SOCKET_KEY, ClientWatch
from server.openai.errors import body_of, log_bug
from server.openai.generate import event_stream, read_body, wait_for
from server.openai.response_shapes import ResponseShapes, event
from server.openai.sse import KeepAlive
from server.request_id import ENVIRON_KEY
from server.service import Service


def make_blueprint(service: Callable[[], Service]) -> Blueprint:
    routes = Blueprint("responses", __name__)

    @routes.post("/v1/responses")
    def create() -> Response:
        current = service()
        asked, prepared = current.prepare(current.text.responses, read_body())
        prepared = salted(prepared)
        answer = current.answer(prepared)
        shapes = ResponseShapes(
            current.model_name, asked, prepared.form.message, answer.generations[0], prepared.num_prompt_tokens
        )
        watch = ClientWatch(request.environ.get(SOCKET_KEY), answer.client_gone)
        if not prepared.stream:
            return _whole(answer, shapes, watch)
        request_id = request.environ.get(ENVIRON_KEY, "-")
        events = _stream(answer, shapes, watch, current.config.keep_alive_interval or None, request_id)
        return event_stream(events)

    return routes


def _whole(answer: Answer, shapes: ResponseShapes, watch: ClientWatch) -> Response:
    wait_for(answer, watch)
    return Response(msgspec.json.encode(shapes.whole()), mimetype="application/json")


def _stream(
    answer: Answer, shapes: ResponseShapes, watch: ClientWatch, keep_alive_s: float | None, request_id: str
) -> Iterator[bytes]:
    """Events of one answer: exactly one of completed, incomplete and error ends them."""
    try:
        watch.start()
        yield b"".join(map(event, shapes.opening()))
        keep_alive = KeepAlive(keep_alive_s)
        while not answer.finished:
            events = [each for _, delta in answer.next(keep_alive_s) for each in shapes.events(delta)]
            yield keep_alive(b"".join(map(event, events)))
    except ConnectionError:
        raise  # nobody is left to tell; a stream that breaks off is no whole one
    except Exception as error:
        log_bug(error, request_id)
        body = body_of(error)[0]["error"]
        yield event(shapes.error(body["message"], body["code"]))
    finally:
        watch.stop()
        answer.close()
