"""The served model as the routes see it: text on one side, the engine's tokens on the other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pyengine.admission import QueueFull
from pyengine.config import EngineConfig
from pyengine.protocol import Ready
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor, load_model_text
from pyengine.text.validation import Limits, PreparedRequest
from server.access import notes as access_notes
from server.answer import Answer
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.ignored_fields import lenient, note
from server.metric_board import Board
from server.metrics import Metrics
from server.threads import Computation, compiling_threads, computed

Prepared = TypeVar("Prepared")
# What may ask for a grammar, which takes a tenth of a second or two; and a letter of ASCII as an escape, by which such
# a name could be written otherwise.
COMPILED_FIELDS = (b'"response_format"', b'"structured_outputs"', b'"tool_choice"', b'"strict"', b'"format"')
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
LARGE_BODY_BYTES = 16 << 10  # beyond it, parsing and tokenising leave the event loop: streams must not wait for them


@dataclass
class Service:
    """One model, ready to answer. ``num_open`` counts HTTP answers that are being written."""

    model_name: str
    text: TextProcessor
    client: EngineClient
    metrics: Metrics
    config: ServerConfig
    notes: tuple[str, ...] = ()
    num_open: int = field(default=0, init=False)
    _created: int = field(default_factory=lambda: int(time.time()), init=False)

    def model_card(self) -> dict:
        return {
            "id": self.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "pyengine",
            "root": self.model_name,
            "parent": None,
            "max_model_len": self.text.limits.max_model_len,
        }

    def prepare(self, parse: Callable[[bytes], Prepared], body: bytes) -> Prepared:
        """``parse(body)``, on a thread when it may take long. Raises RequestError."""
        if self.config.unknown_fields == "error":
            return self._computed(parse, body)
        prepared, ignored = self._computed(lenient(parse), body)
        note(ignored)
        return prepared

    @staticmethod
    def _computed(parse: Callable[[bytes], Prepared], body: bytes) -> Prepared:
        if may_ask_for_a_grammar(body):
            return Computation(parse, body, pool=compiling_threads()).wait()
        return computed(len(body) > LARGE_BODY_BYTES, parse, body)

    def answer(self, prepared: PreparedRequest) -> Answer:
        """The answer to a request that the engine has taken. Raises QueueFull when there is no room for it."""
        try:
            answer = Answer(self, prepared)
            answer.wait_until_taken()
        except QueueFull as error:
            self.metrics.count_rejection(error.code)
            raise
        return answer


def may_ask_for_a_grammar(body: bytes) -> bool:
    """Seen from its bytes, before it is parsed; also true of many that ask for none."""
    return any(field in body for field in COMPILED_FIELDS) or _ESCAPED_LETTER.search(body) is not None


def load_text(config: ServerConfig, engine_config: EngineConfig, path: Path) -> ModelText:
    """The text side of the model at ``path``. Raises ModelError naming the file that is missing or broken."""
    text = load_model_text(path, engine_config.tokenizer, random_weights=engine_config.load_format == "dummy")
    return text if config.chat_template is None else _with_template(text, Path(config.chat_template))


def make_service(
    config: ServerConfig,
    model: str,
    text: ModelText,
    ready: Ready,
    client: EngineClient,
    board: Board | None = None,
) -> Service:
    """The service for the engine that has just said it is ready; ``model`` as the user named it."""
    model_name = config.served_model_name or model
    limits = Limits(
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        hidden_size=ready.hidden_size,
        max_body_bytes=config.max_body_size,
        max_prompts=config.max_prompts,
        max_sequences=config.max_sequences,
        max_n=config.max_n,
        max_stops=config.max_stops,
        max_logit_bias=config.max_logit_bias,
    )
    processor = TextProcessor(text, limits, [model_name], splits_reasoning=config.reasoning == "auto")
    metrics = Metrics(model_name, ready.max_model_len, board)
    notes = (*text.warnings, *_defaults_notes(text), *access_notes(config))
    return Service(model_name, processor, client, metrics, config, notes)


def _defaults_notes(text: ModelText) -> list[str]:
    """What a request gets that says nothing about sampling, where the checkpoint has an opinion."""
    if not text.sampling_defaults:
        return []
    values = ", ".join(f"{name} {value}" for name, value in text.sampling_defaults.items())
    return [f"generation_config.json sets what requests leave open: {values}"]


def _with_template(text: ModelText, path: Path) -> ModelText:
    import dataclasses

    from pyengine.errors import ModelError

    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"--chat-template {path}: {error}") from None
    return dataclasses.replace(text, chat_template=ChatTemplate(source, text.tokenizer.facts.named_tokens), warnings=[])
