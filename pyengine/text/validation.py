"""One validator for every entry: HTTP bodies, the offline class and batch files.

Everything a request may get wrong is found here, before the engine hears of it: fields and types, ranges, token ids
against the width of the logits, lengths against the context, and how much one request may ask for at all. What leaves
is complete: prompts as ids, sampling parameters with the checkpoint's defaults, a seed and an output length that fits.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from pyengine.errors import RequestError
from pyengine.protocol import Pooling, Request
from pyengine.sampling_params import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_STRINGS,
    MAX_TOKENS,
    Range,
    SamplingParams,
)
from pyengine.text.constraints import grammar_of
from pyengine.text.fields import ChatRequest, CompletionRequest, TokenizeRequest, select_fields
from pyengine.text.json_body import parse_object, shape, with_integers
from pyengine.text.message import MessageForm
from pyengine.text.tokenizer import check_encodable

DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI's /v1/completions generates when max_tokens is not given
# Of fields that are none of SamplingParams'.
RANGES = {
    "thinking_token_budget": Range(-1, MAX_TOKENS, is_int=True),
    "top_logprobs": Range(0, MAX_LOGPROBS, is_int=True),
    "priority": Range(-(1 << 31), (1 << 31) - 1, is_int=True),
}
MIN_TEMPERATURE = 1e-6  # anything colder is 0: logits divided by it would not stay finite
LARGEST = 1 << 1023  # numbers beyond a double are refused, as everywhere in a body
TypedRequest = TypeVar("TypedRequest", bound=msgspec.Struct)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. ``max_model_len`` and ``vocab_size`` come from the engine's ``Ready``.

    Attributes:
        max_model_len: tokens of prompt and output together.
        vocab_size: width of the logits; every token id must be smaller.
        hidden_size: dimensions of an embedding.
        max_body_bytes: of a JSON body.
        max_prompts: prompts in one request.
        max_sequences: prompts times n.
        max_prompt_tokens: over all prompts of a request.
        max_prompt_scores: tokens of all prompts, times the log-probabilities at each, times n.
        max_n: sequences of one prompt.
        max_stops: stop strings.
        max_logit_bias: entries of logit_bias.
        max_stop_chars: of one stop string.
        max_cache_salt_chars: of cache_salt.
    """

    max_model_len: int
    vocab_size: int
    hidden_size: int = 0
    max_body_bytes: int = 8 << 20
    max_prompts: int = 1024
    max_sequences: int = 1024
    max_prompt_tokens: int = 1 << 22
    max_prompt_scores: int = 1 << 21
    max_n: int = MAX_N
    max_stops: int = MAX_STOP_STRINGS
    max_logit_bias: int = MAX_LOGIT_BIAS
    max_stop_chars: int = 1024
    max_cache_salt_chars: int = 128


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt that the engine can take: checked ids and complete parameters. ``text`` is None when ids were given."""

    token_ids: list[int]
    params: SamplingParams
    text: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What a client asked about the look of its answer; the engine knows nothing of it.

    Attributes:
        echo: the prompt's text comes before the generated one.
        prompt_logprobs: how many of the likeliest are given at each token of the prompt; None: nothing is.
        return_token_ids: ids beside the text; log-probabilities are then given for every id, shown as text or not.
        tokens_as_ids: log-probabilities name a token ``token_id:7`` instead of by its text.
        message: what a chat's answer is taken apart into.
    """

    echo: bool = False
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    message: MessageForm = field(default_factory=MessageForm)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One client request, ready for the engine: one ``Request`` for each prompt, each with ``params.n`` sequences."""

    prompts: tuple[PreparedPrompt, ...]
    eos_token_ids: tuple[int, ...]
    form: AnswerForm = field(default_factory=AnswerForm)
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    priority: int = 0
    cache_salt: str = ""
    pooling: Pooling | None = None

    @property
    def num_sequences(self) -> int:
        return sum(prompt.params.n for prompt in self.prompts)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def to_requests(self, request_ids: Sequence[str], arrival_s: float = 0.0) -> list[Request]:
        """Wire messages, one id for each prompt."""
        return [
            Request(
                request_id=request_id,
                prompt_token_ids=prompt.token_ids,
                params=prompt.params,
                eos_token_ids=list(self.eos_token_ids),
                priority=self.priority,
                cache_salt=self.cache_salt,
                arrival_s=arrival_s,
                pooling=self.pooling,
            )
            for request_id, prompt in zip(request_ids, self.prompts, strict=True)
        ]


def parse_chat(body: bytes, limits: Limits) -> ChatRequest:
    """A typed /v1/chat/completions body; ranges and messages are checked when it is prepared."""
    return parse(body, ChatRequest, limits)


def parse_completion(body: bytes, limits: Limits) -> CompletionRequest:
    """A typed /v1/completions body."""
    return parse(body, CompletionRequest, limits)


def parse(body: bytes, endpoint: type[TypedRequest], limits: Limits) -> TypedRequest:
    """A body as the typed request of its endpoint."""
    return shape(select_fields(parse_object(body, limits.max_body_bytes), endpoint), endpoint)


def check_model(name: str | None, served_names: Sequence[str]) -> None:
    """404 for a model that is not served; a request may leave the name out."""
    if name is not None and served_names and name not in served_names:
        served = ", ".join(f"`{served}`" for served in served_names)
        raise RequestError(
            f"The model `{name[:200]}` does not exist; this server has {served}",
            param="model",
            status=404,
            code="model_not_found",
        )


# Fields of a request that are SamplingParams under the same name.
_SAMPLING = frozenset(each.name for each in msgspec.structs.fields(SamplingParams))


def sampling_params(
    request: ChatRequest | CompletionRequest, defaults: dict[str, Any], limits: Limits
) -> SamplingParams:
    """The request's parameters over the checkpoint's defaults. Raises RequestError naming the field out of range."""
    given = {name: getattr(request, name) for name in request.__struct_fields__ if name in _SAMPLING}
    given["logit_bias"] = _bias_by_id(request.logit_bias)
    given["grammar"] = grammar_of(given.pop("response_format", None), given.pop("structured_outputs", None))
    if isinstance(request, ChatRequest):
        given["logprobs"] = _chat_logprobs(request)
    values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    if isinstance(request, ChatRequest):
        if request.max_completion_tokens is not None:
            values["max_tokens"] = request.max_completion_tokens
    else:
        values.setdefault("max_tokens", DEFAULT_COMPLETION_TOKENS)
        if request.echo and request.logprobs is not None:
            values["prompt_logprobs"] = max(request.logprobs, request.prompt_logprobs or 0)
    if "max_tokens" in defaults:  # a bound, not only a default, as vLLM has it
        values["max_tokens"] = min(values["max_tokens"], defaults["max_tokens"])
    if values.get("max_tokens", LARGEST) < LARGEST:  # more than the context is no error, it is clamped
        values["max_tokens"] = min(values["max_tokens"], max(limits.max_model_len, values.get("min_tokens", 0)))
    try:
        params = check_params(SamplingParams(**values), limits)
        _check_generates(params, echo=getattr(request, "echo", False))
        return params
    except RequestError as error:
        if error.param == "max_tokens" and getattr(request, "max_completion_tokens", None) is not None:
            text = error.message.replace("max_tokens", "max_completion_tokens")
            raise RequestError(text, param="max_completion_tokens") from None
        raise


def check_params(params: SamplingParams, limits: Limits) -> SamplingParams:
    """The limits that ``SamplingParams`` itself cannot know."""
    if params.n > limits.max_n:
        raise RequestError(f"n must be in [1, {limits.max_n}], got {params.n}", param="n")
    for name, most in (("stop", limits.max_stops), ("logit_bias", limits.max_logit_bias)):
        if len(getattr(params, name) or ()) > most:
            raise RequestError(f"{name} may have at most {most} entries, got {len(getattr(params, name))}", param=name)
    for stop in params.stop:
        if len(stop) > limits.max_stop_chars:
            raise RequestError(
                f"stop: a string may have at most {limits.max_stop_chars} characters, got {len(stop)}", param="stop"
            )
        check_encodable(stop, "stop")
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        for token_id in getattr(params, name) or ():
            if token_id >= limits.vocab_size:
                raise RequestError(_id_text(name, token_id, limits), param=name)
    return params


def _check_generates(params: SamplingParams, echo: bool) -> None:
    if params.max_tokens == 0 and params.prompt_logprobs is None and not echo:
        raise RequestError(
            f"max_tokens must be in [1, {MAX_TOKENS}], got 0, which is for echo or prompt_logprobs", param="max_tokens"
        )


def _bias_by_id(biases: dict[str, float] | None) -> dict[int, float] | None:
    """``logit_bias`` with the ids that JSON can only write as strings."""
    if not biases:
        return None
    wrong = next((key for key in biases if not (key.isascii() and key.isdigit() and len(key) <= 10)), None)
    if wrong is not None:
        raise RequestError(f"logit_bias must map token ids to numbers, got the key {wrong!r:.80}", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}


def _chat_logprobs(request: ChatRequest) -> int | None:
    """Chat's two fields as SamplingParams' one."""
    num_top = request.top_logprobs or 0
    RANGES["top_logprobs"].check("top_logprobs", num_top)
    if num_top and not request.logprobs:
        raise RequestError("top_logprobs is only allowed with logprobs: true", param="top_logprobs")
    return num_top if request.logprobs else None


def check_options(request: ChatRequest | CompletionRequest, limits: Limits) -> None:
    """Stream options, priority, salt, and what does not go together."""
    check_service(request.priority, request.cache_salt, limits)
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is only allowed with stream: true", param="stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise RequestError("prompt_logprobs is not allowed with stream: true", param="prompt_logprobs")


def check_service(priority: int, cache_salt: str, limits: Limits) -> None:
    """What is said of a request's service, not of its answer."""
    RANGES["priority"].check("priority", priority)
    if not isinstance(cache_salt, str):
        raise RequestError(f"cache_salt must be a string, got {cache_salt!r:.80}", param="cache_salt")
    if len(cache_salt) > limits.max_cache_salt_chars:
        raise RequestError(
            f"cache_salt may have at most {limits.max_cache_salt_chars} characters, got {len(cache_salt)}",
            param="cache_salt",
        )


def check_dimensions(dimensions: int | None, limits: Limits) -> None:
    """An embedding may be cut, not made longer."""
    if dimensions is not None and not 1 <= dimensions <= limits.hidden_size:
        raise RequestError(
            f"dimensions must be in [1, {limits.hidden_size}], got {str(dimensions)[:40]}", param="dimensions"
        )


def generation_prompt(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether the template opens a new assistant message: yes, unless the last one is to be continued."""
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
        )
    return not continue_final_message and add_generation_prompt is not False


def continued_text(messages: Sequence[Mapping[str, Any]], continue_final_message: bool) -> str:
    """The text that the answer goes on with; "" where it is new. The messages have been rendered."""
    content = messages[-1].get("content") if continue_final_message else ""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""


def check_prompt_alone(request: TokenizeRequest) -> None:
    """What a chat template would take has no place beside a prompt."""
    for name in ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs"):
        if getattr(request, name):
            raise RequestError(f"{name} is only allowed with messages", param=name)


def truncate(
    token_ids: list[int], num_kept: int | None, params: SamplingParams, bos_token_id: int | None, limits: Limits
) -> list[int]:
    """The last ``num_kept`` ids (-1: as many as leave room for max_tokens), the first of them the BOS where one stood
    at the beginning and nowhere else: with some models it opens every message.

    Only what was asked for is cut off; None cuts nothing.
    """
    if num_kept is None:
        return token_ids
    if num_kept == -1:
        num_kept = max(1, limits.max_model_len - min(params.max_tokens or 1, limits.max_model_len))
    elif not 1 <= num_kept < limits.max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens must be -1 or in [1, {limits.max_model_len - 1}], got {str(num_kept)[:40]}",
            param="truncate_prompt_tokens",
        )
    if len(token_ids) <= num_kept:
        return token_ids
    if token_ids[0] == bos_token_id and num_kept > 1 and bos_token_id not in token_ids[1:]:
        return [bos_token_id, *token_ids[len(token_ids) - num_kept + 1 :]]
    return token_ids[-num_kept:]


def check_counts(num_prompts: int, n: int, limits: Limits, param: str = "prompt") -> None:
    """How many prompts and sequences one request asks for; looked at before anything is tokenised."""
    if num_prompts > limits.max_prompts:
        raise RequestError(
            f"at most {limits.max_prompts} prompts are allowed in one request, got {num_prompts}", param=param
        )
    if num_prompts * n > limits.max_sequences:
        raise RequestError(
            f"prompts times n may be at most {limits.max_sequences}, got {num_prompts} x {n} = {num_prompts * n}",
            param="n",
        )


def check_prompt_scores(prompts: Sequence[PreparedPrompt], limits: Limits) -> None:
    """How many log-probabilities of prompts an answer would have; each choice repeats those of its prompt."""
    params = prompts[0].params
    if params.prompt_logprobs is None:
        return
    num_tokens, each = sum(len(prompt.token_ids) for prompt in prompts), params.prompt_logprobs + 1
    if num_tokens * each * params.n > limits.max_prompt_scores:
        raise RequestError(
            f"an answer may have {limits.max_prompt_scores} log-probabilities of prompts, got {num_tokens} tokens "
            f"x {each} x n = {params.n}",
            param="prompt_logprobs",
        )


def split_prompts(prompt: object, param: str = "prompt") -> list[str | list[int]]:
    """The four forms of ``prompt`` as a list of texts or of id lists."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, (list, tuple)):
        raise RequestError(
            f"{param} must be a string, strings, token ids or lists of token ids, got {type(prompt).__name__}",
            param=param,
        )
    if not prompt:
        raise RequestError(f"{param} is empty", param=param)
    if _all_ints(prompt):
        return [list(prompt)]
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if all(isinstance(item, (list, tuple)) and _all_ints(item) for item in prompt):
        return [list(item) for item in prompt]
    if (whole := with_integers(prompt)) is not prompt:  # 16.0 is 16 here too
        return split_prompts(whole, param)
    raise RequestError(
        f"{param} must be a string, strings, token ids or lists of token ids, not a mixture", param=param
    )


def _all_ints(values: Sequence[object]) -> bool:
    return all(type(value) is int for value in values)


def check_vocabulary(token_ids: list[int], limits: Limits, param: str) -> None:
    """All of at least one id are within the logits' width."""
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < limits.vocab_size:
            raise RequestError(_id_text(param, token_id, limits), param=param)


def check_token_ids(token_ids: list[int], limits: Limits, param: str = "prompt", num_more: int = 1) -> None:
    """Ids are within the logits' width and leave room for ``num_more`` tokens."""
    if not token_ids:
        raise RequestError(f"{param} is empty", param=param)
    check_vocabulary(token_ids, limits, param)
    if len(token_ids) + num_more > limits.max_model_len:
        raise RequestError(
            f"the prompt has {len(token_ids)} tokens, but prompt and output together may have {limits.max_model_len} "
            "(--max-model-len)",
            param=param,
            code="context_length_exceeded",
        )


def _id_text(param: str, token_id: int, limits: Limits) -> str:
    return f"{param}: token id {str(token_id)[:40]} is outside [0, {limits.vocab_size})"


def complete_params(params: SamplingParams, num_prompt_tokens: int, limits: Limits) -> SamplingParams:
    """Parameters with an output length that fits the context behind this prompt, and a seed."""
    room = limits.max_model_len - num_prompt_tokens
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    seed = secrets.randbits(63) if params.seed is None else params.seed
    temperature = params.temperature if params.temperature >= MIN_TEMPERATURE else 0.0
    return msgspec.structs.replace(
        params,
        temperature=temperature,
        max_tokens=max_tokens,
        min_tokens=min(params.min_tokens, max_tokens),
        seed=seed,
        truncate_prompt_tokens=None,
    )
