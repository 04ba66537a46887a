"""Lines through the engine: always enough of them in it to fill its steps, never all of them in memory.

Whatever is wrong with a line becomes its answer; nothing that a line says ends the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyengine.batch.answers import Endpoint, Whole, answered, endpoints, unreadable
from pyengine.batch.lines import BadLine, Identity, Line, parse_line
from pyengine.engine import Engine
from pyengine.errors import RequestError
from pyengine.protocol import NO_TOKEN_LEFT, Request, TokenDelta
from pyengine.text.generation import Generation
from pyengine.text.processor import TextProcessor
from pyengine.text.unknown_fields import ignoring

WINDOW_STEPS = 2  # times the sequences of a step: what is in the engine, so that it never waits for a line

Answer = dict[str, Any]


@dataclass
class _Job:
    """A line in the engine, with its growing answers: prompt i, sequence j of n -> i * n + j."""

    line: Line
    endpoint: Endpoint
    whole: Whole
    requests: Sequence[Request]
    generations: dict[tuple[str, int], Generation]
    ignored: Sequence[str]

    @property
    def num_sequences(self) -> int:
        return len(self.generations)


class Pipeline:
    """Answers lines with an engine of its own. ``num_output_tokens``: of all answers so far.

    Args:
        done: what earlier runs have answered.
    """

    def __init__(
        self,
        engine: Engine,
        text: TextProcessor,
        model: str,
        takes_unknown: bool = False,
        done: Iterable[Identity] = (),
    ):
        self._engine = engine
        self._text = text
        self._endpoints = endpoints(text, model)
        self._takes_unknown = takes_unknown
        self._window = WINDOW_STEPS * engine.facts.plan.max_num_seqs
        self._jobs: dict[str, _Job] = {}  # by request id
        self._num_live = 0
        self._seen = set(done)
        self.num_output_tokens = 0

    def run(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[Answer]:
        """An answer for each line, in the order in which they are finished."""
        is_open = True
        while is_open or self._engine.has_work:
            while is_open and self._num_live < self._window:
                number, text = next(lines, (0, b""))
                is_open = number > 0
                if is_open and (answer := self._start(number, text)) is not None:
                    yield answer
            if self._engine.has_work:
                for delta in self._engine.step():
                    if (answer := self._take(delta)) is not None:
                        yield answer

    def _start(self, number: int, text: bytes) -> Answer | None:
        """Put a line into the engine; an answer at once when that cannot be."""
        try:
            line = parse_line(text)
            self._check_new(line)
        except BadLine as error:
            return unreadable(error.custom_id, number, error.code, str(error))
        endpoint = self._endpoints.get(line.url)
        try:
            endpoint = self._check_route(line)
            with ignoring() if self._takes_unknown else contextlib.nullcontext(()) as ignored:
                prepared, whole = endpoint.prepare(bytes(line.body))
            if prepared.stream:
                raise RequestError("stream is not possible in a batch", param="stream")
            ids = [f"line-{number}-{i}" for i in range(len(prepared.prompts))]
            generations = {
                (request_id, generation.index): generation
                for request_id, prompt in zip(ids, prepared.prompts, strict=True)
                for generation in self._text.generations(prompt, prepared.form)
            }
            job = _Job(line, endpoint, whole, prepared.to_requests(ids), generations, ignored)
            self._add(job)
        except RequestError as error:
            error_body = endpoint.error if endpoint is not None else self._endpoints["/v1/completions"].error
            return answered(line.custom_id, error.status, error_body(error))
        return None

    def _check_new(self, line: Line) -> None:
        if line.custom_id in self._seen:
            raise BadLine("duplicate_custom_id", f"custom_id {line.custom_id!r:.200} comes twice", line.custom_id)
        self._seen.add(line.custom_id)

    def _check_route(self, line: Line) -> Endpoint:
        if line.url not in self._endpoints:
            known = ", ".join(self._endpoints)
            raise RequestError(f"url must be one of {known}, got {line.url!r:.200}", param="url", status=404)
        if line.method != "POST":
            raise RequestError(f"method must be POST, got {line.method!r:.80}", param="method", status=405)
        return self._endpoints[line.url]

    def _add(self, job: _Job) -> None:
        """All requests of a line or none."""
        ids = [request.request_id for request in job.requests]
        try:
            for request in job.requests:
                self._engine.add(request)
        except RequestError:
            self._engine.abort(ids)
            raise
        self._jobs.update(dict.fromkeys(ids, job))
        self._num_live += job.num_sequences

    def _take(self, delta: TokenDelta) -> Answer | None:
        """Give a delta to its generation; the line's answer when that completes it."""
        job = self._jobs.get(delta.request_id)
        if job is None:
            return None
        text_delta = job.generations[delta.request_id, delta.index].push(delta)
        if text_delta.abort:
            self._engine.abort_sequence(delta.request_id, delta.index)
        if text_delta.error is not None:
            self._engine.abort([request.request_id for request in job.requests])
            self._end(job)
            status = 400 if text_delta.error == NO_TOKEN_LEFT else 500
            error = RequestError(text_delta.error, status=status)
            return answered(job.line.custom_id, status, job.endpoint.error(error), job.ignored)
        if text_delta.finish_reason is None or not all(each.finished for each in job.generations.values()):
            return None
        self._end(job)
        return answered(job.line.custom_id, 200, job.whole(list(job.generations.values())), job.ignored)

    def _end(self, job: _Job) -> None:
        for request in job.requests:
            del self._jobs[request.request_id]
        self._num_live -= job.num_sequences
        self.num_output_tokens += sum(generation.num_output_tokens for generation in job.generations.values())
