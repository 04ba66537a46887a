"""The offline door: ``LLM(model=...).generate(prompts, params)`` over the same scheduler, runner and text code as the
server.

Thousands of prompts may be given in one call: they are queued, batched by the scheduler as memory allows, and come
back in the order given.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from tqdm import tqdm

from pyengine import embeddings
from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.errors import RequestError
from pyengine.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    prompt_logprobs_of,
)
from pyengine.protocol import Pooling, Request, TokenDelta
from pyengine.sampling_params import SamplingParams
from pyengine.text import validation
from pyengine.text.generation import Generation
from pyengine.text.processor import POOLED, TextProcessor, load_model_text
from pyengine.text.tokenizer import Tokenizer
from pyengine.text.validation import Limits, PreparedPrompt

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model in this process. Holds an engine; not thread-safe.

    Args:
        model: folder, .gguf file, hub id, or the default model's name.
        options: any field of EngineConfig, by name.

    Raises:
        ConfigError, ModelError, BuildError: in one line what is wrong and what to change.
    """

    def __init__(self, model: str = EngineConfig.model, **options: Any):
        # Nobody watches the tokens come: no step is kept short for them.
        self._start(EngineConfig(model=model, **{"itl_target_ms": 0.0, **options}))

    @classmethod
    def of(cls, config: EngineConfig) -> LLM:
        """One from a configuration that is there already."""
        llm = cls.__new__(cls)
        llm._start(config)
        return llm

    def _start(self, config: EngineConfig) -> None:
        bar = _LoadBar()
        try:
            self._engine = Engine.start(config, bar.show)
        finally:
            bar.close()
        facts = self._engine.facts
        limits = Limits(
            max_model_len=facts.plan.max_model_len,
            vocab_size=facts.model.vocab_size,
            hidden_size=facts.model.hidden_size,
        )
        self._text = TextProcessor(
            load_model_text(facts.model_path, config.tokenizer, random_weights=config.load_format == "dummy"), limits
        )
        self._ids = itertools.count()

    def generate(
        self,
        prompts: Any,
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Continue each prompt.

        Args:
            prompts: one prompt or a list: text, a list of token ids, ``{"prompt": text}`` or ``{"prompt_token_ids":
                ids}``.
            sampling_params: one for all, one for each, or None for the checkpoint's defaults.
            priority: lower ones are computed first; one for all or one for each.
            cache_salt: the prefix cache is shared only between prompts of equal salt; one for all or one for each.

        Raises RequestError for a prompt or parameter that cannot be served, ValueError for a list that is not as long
        as that of the prompts; both before anything is computed.
        """
        many = _as_list(prompts)
        params = self._params_for(sampling_params, len(many))
        prepared = [self._text.prepare_offline(prompt, each) for prompt, each in zip(many, params, strict=True)]
        return self._run(prepared, self._services(priority, cache_salt, len(many)), use_tqdm)

    def chat(
        self,
        messages: Any,
        sampling_params: Params = None,
        use_tqdm: bool = True,
        tools: list[dict[str, Any]] | None = None,
        thinking_token_budget: int | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str] = "",
        **template_kwargs: bool | int | float | str | None,
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of messages) or several (a list of such lists).

        ``tools``, in OpenAI's form, are offered to the model by the chat template; the answer's text has the calls as
        the model wrote them. Behind ``thinking_token_budget`` tokens of thinking its end is forced, for models whose
        template marks it (else a RequestError). The template opens an assistant's message, unless
        ``add_generation_prompt`` is False or ``continue_final_message`` lets the last message go on. ``priority`` and
        ``cache_salt`` are those of ``generate``; other keyword arguments become variables of the template. Raises
        RequestError as HTTP answers 400.
        """
        many = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        params = self._params_for(sampling_params, len(many))
        prepared = [
            self._text.prepare_messages(
                each, p, tools, thinking_token_budget, add_generation_prompt, continue_final_message, **template_kwargs
            )
            for each, p in zip(many, params, strict=True)
        ]
        return self._run(prepared, self._services(priority, cache_salt, len(many)), use_tqdm)

    def embed(
        self,
        prompts: Any,
        pooling: str | None = None,
        dimensions: int | None = None,
        use_tqdm: bool = True,
        *,
        truncate_prompt_tokens: int | None = None,
        priority: int | Sequence[int] = 0,
        cache_salt: str | Sequence[str] = "",
    ) -> list[EmbeddingRequestOutput]:
        """One vector of length 1 for each prompt, from the model's final hidden states.

        Args:
            prompts: as in ``generate``.
            pooling: "mean" of all tokens or the "last" of them; None: what the checkpoint says, else the mean.
            dimensions: keep only so many of the first ones (Matryoshka representations); None: all.
            truncate_prompt_tokens: as of SamplingParams.
            priority, cache_salt: as in ``generate``.

        Raises RequestError for a prompt or argument that cannot be served, before anything is computed.
        """
        validation.check_dimensions(dimensions, self._text.limits)
        pooled_by = self._text.pooling(pooling)
        params = msgspec.structs.replace(POOLED, truncate_prompt_tokens=truncate_prompt_tokens)
        prepared = [self._text.prepare_offline(prompt, params) for prompt in _as_list(prompts)]
        jobs = self._complete(prepared, self._services(priority, cache_salt, len(prepared)), use_tqdm, pooled_by)
        return [job.embedding(request_id, dimensions) for request_id, job in jobs.items()]

    @property
    def engine(self) -> Engine:
        """For programs that run its steps themselves."""
        return self._engine

    @property
    def text(self) -> TextProcessor:
        """What checks requests and makes text of tokens."""
        return self._text

    def get_tokenizer(self) -> Tokenizer:
        return self._text.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        return self._text.default_sampling_params()

    def _params_for(self, params: Params, count: int) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise ValueError(f"expected one SamplingParams or {count}, one for each prompt; got {len(params)}")
        return list(params)

    def _services(
        self, priority: int | Sequence[int], cache_salt: str | Sequence[str], count: int
    ) -> list[dict[str, Any]]:
        """Fields of each prompt's ``Request`` that say nothing of its answer."""
        many = zip(_each("priority", priority, count), _each("cache_salt", cache_salt, count), strict=True)
        services = [{"priority": priority, "cache_salt": salt} for priority, salt in many]
        for service in services:
            validation.check_service(**service, limits=self._text.limits)
        return services

    def _run(
        self, prepared: list[PreparedPrompt], services: list[dict[str, Any]], use_tqdm: bool
    ) -> list[RequestOutput]:
        return [job.output(request_id) for request_id, job in self._complete(prepared, services, use_tqdm).items()]

    def _complete(
        self,
        prepared: list[PreparedPrompt],
        services: list[dict[str, Any]],
        use_tqdm: bool,
        pooling: Pooling | None = None,
    ) -> dict[str, _Job]:
        """All prompts through the engine; finished jobs by request id, in the order given."""
        jobs = {f"offline-{next(self._ids)}": _Job(prompt, self._text.generations(prompt)) for prompt in prepared}
        live = dict(jobs)
        eos_token_ids = list(self._text.eos_token_ids)
        try:
            for (request_id, job), service in zip(jobs.items(), services, strict=True):
                ids, params = job.prompt.token_ids, job.prompt.params
                self._engine.add(Request(request_id, ids, params, eos_token_ids, pooling=pooling, **service))
            with tqdm(total=len(jobs), desc="prompts", disable=not use_tqdm, dynamic_ncols=True) as bar:
                while self._engine.has_work:
                    for delta in self._engine.step():
                        bar.update(self._take(delta, live))
        finally:
            self._engine.abort(list(live))
        return jobs

    def _take(self, delta: TokenDelta, live: dict[str, _Job]) -> int:
        """Give a delta to its generation; returns 1 when that completes the request."""
        job = live.get(delta.request_id)
        if job is None:
            return 0
        text_delta = job.generations[delta.index].push(delta)
        if text_delta.abort:
            self._engine.abort_sequence(delta.request_id, delta.index)
        if text_delta.finish_reason is None or not all(generation.finished for generation in job.generations):
            return 0
        del live[delta.request_id]
        return 1


@dataclass(frozen=True)
class _Job:
    """A prompt on its way, with its n growing answers."""

    prompt: PreparedPrompt
    generations: list[Generation]

    def output(self, request_id: str) -> RequestOutput:
        return RequestOutput(
            request_id,
            self.prompt.text,
            self.prompt.token_ids,
            [CompletionOutput.of(each) for each in self.generations],
            finished=True,
            num_cached_tokens=self.generations[0].num_cached_tokens,
            prompt_logprobs=prompt_logprobs_of(self.generations[0]),
        )

    def embedding(self, request_id: str, dimensions: int | None) -> EmbeddingRequestOutput:
        (generation,) = self.generations
        if generation.embedding is None:
            raise RequestError(f"no embedding of {request_id}: {generation.error}", status=500)
        vector = embeddings.finish(generation.embedding, dimensions)
        num_cached = generation.num_cached_tokens
        return EmbeddingRequestOutput(
            request_id,
            self.prompt.text,
            self.prompt.token_ids,
            EmbeddingOutput(vector.tolist()),
            num_cached_tokens=num_cached,
        )


def _as_list(prompts: Any) -> list:
    """A single prompt (text, ids or an object) as a list of one."""
    if isinstance(prompts, (str, dict)) or (
        isinstance(prompts, (list, tuple)) and prompts and isinstance(prompts[0], int)
    ):
        return [prompts]
    return list(prompts)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One for each of ``count`` prompts, of one for all or one for each."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"expected one {name} or {count}, one for each prompt; got {len(value)}")
    return list(value)


class _LoadBar:
    """Progress of downloading and loading, as bytes."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._text = ""

    def show(self, text: str, done: int, total: int) -> None:
        if self._bar is None or self._text != text:
            self.close()
            self._text = text
            self._bar = tqdm(total=total, desc=text, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
