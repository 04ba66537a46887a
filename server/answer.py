"""One HTTP answer: the engine's tokens for all its prompts and sequences, turned into text as they come.

Choice index: prompt i, sequence j of n -> i * n + j. Whoever makes an answer closes it, whatever happens; closing
aborts in the engine what still runs.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from pyengine.errors import RequestError
from pyengine.protocol import NO_TOKEN_LEFT, TokenDelta
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.validation import PreparedRequest
from server.engine_client import SequenceFailed
from server.openai import responses

if TYPE_CHECKING:
    from server.service import Service


TAKEN_TIMEOUT_S = 5.0  # an engine in a step longer than this has the client wait behind the first bytes of the answer


class Answer:
    """Submits a prepared request and collects its generations."""

    def __init__(self, service: Service, prepared: PreparedRequest):
        self._service = service
        self.prepared = prepared
        prefix = secrets.token_hex(12)
        ids = [f"{prefix}-{i}" for i in range(len(prepared.prompts))]
        self.generations: list[Generation] = []
        self._choice: dict[tuple[str, int], int] = {}
        for request_id, prompt in zip(ids, prepared.prompts, strict=True):
            for generation in service.text.generations(prompt, prepared.form):
                self._choice[request_id, generation.index] = len(self.generations)
                self.generations.append(generation)
        self._num_unfinished = len(self.generations)
        self._metrics = service.metrics.track(prepared.num_prompt_tokens)
        self._closed = False
        self._stream = service.client.submit(prepared.to_requests(ids, time.time()))
        service.num_open += 1

    def wait_until_taken(self) -> None:
        """Until the engine has queued the request. Raises what it refused it with, QueueFull among others; the answer
        is over then.
        """
        try:
            self._stream.wait_until_taken(TAKEN_TIMEOUT_S)
        except Exception:
            self.close("error")
            raise

    @property
    def finished(self) -> bool:
        return not self._num_unfinished

    def next(self, timeout_s: float | None = None) -> list[tuple[int, TextDelta]]:
        """(choice, delta) pairs since the last call; [] when nothing came within ``timeout_s``.

        Raises RequestError, EngineDead, ServerStopping or SequenceFailed; the answer is over then.
        """
        out = []
        for delta in self._received(timeout_s):
            self._metrics.observe(delta)
            choice = self._choice[delta.request_id, delta.index]
            generation = self.generations[choice]
            if generation.finished:
                continue
            text_delta = generation.push(delta)
            if text_delta.finish_reason is not None:
                self._num_unfinished -= 1
            if text_delta.abort:
                self._service.client.end_sequence(self._stream, delta.request_id, delta.index)
            if text_delta.error is not None:
                self.close("error")
                raise (RequestError if text_delta.error == NO_TOKEN_LEFT else SequenceFailed)(text_delta.error)
            out.append((choice, text_delta))
        return out

    def _received(self, timeout_s: float | None) -> list[TokenDelta]:
        try:
            return self._stream.get(timeout_s)
        except ConnectionError:
            raise
        except Exception:
            self.close("error")
            raise

    def usage(self) -> dict:
        """Tokens so far, in OpenAI's shape. Each prompt counts once, whatever its n."""
        num_cached = sum(self.generations[self._choice[key]].num_cached_tokens for key in self._choice if key[1] == 0)
        num_output = sum(generation.num_output_tokens for generation in self.generations)
        return responses.usage(self.prepared.num_prompt_tokens, num_output, num_cached)

    def client_gone(self) -> None:
        """The client hung up: end the answer now; a reader that waits in ``next`` is woken."""
        self._stream.fail(ConnectionAbortedError("the client closed the connection"))
        self.close("abort")

    def close(self, reason: str | None = None) -> None:
        """Abort what is still running and count the request, once."""
        if self._closed:
            return
        self._closed = True
        self._service.num_open -= 1
        self._service.client.forget(self._stream)
        reasons = {generation.finish_reason for generation in self.generations}
        self._metrics.finish(reason or ("abort" if None in reasons else "length" if "length" in reasons else "stop"))
