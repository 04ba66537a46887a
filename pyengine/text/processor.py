"""What the server, the offline class and batch files hold: a checkpoint's text side and the limits of its engine.

``ModelText`` is read from the checkpoint and needs no engine; ``TextProcessor`` adds what the engine's ``Ready`` says
(context, width of the logits) and turns requests into checked prompts and prompts into growing generations. All methods
are pure computation and may run in any thread; a long body is best prepared in one, since tokenising takes its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pyengine.errors import ModelError, RequestError
from pyengine.protocol import Pooling
from pyengine.sampling_params import SamplingParams
from pyengine.text import anthropic, responses, validation
from pyengine.text.anthropic import parse_count, parse_messages
from pyengine.text.bad_words import with_bad_words
from pyengine.text.byte_tokenizer import make_byte_tokenizer
from pyengine.text.chat_template import ChatTemplate, self_check
from pyengine.text.constraints import with_grammar
from pyengine.text.effort import effort_variables
from pyengine.text.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from pyengine.text.forced_calls import forced_format, forced_grammar
from pyengine.text.generation import Generation
from pyengine.text.hf_folder import has_tokenizer, read_sampling_defaults
from pyengine.text.message import MessageForm
from pyengine.text.pooling import read_pooling
from pyengine.text.reasoning import Place, find_place, find_reasoning_format, thinking_before
from pyengine.text.renamed import renamed
from pyengine.text.responses import ResponsesRequest, parse_responses
from pyengine.text.strict_tools import strict_grammar
from pyengine.text.tokenizer import Tokenizer, load_tokenizer, unique_ids
from pyengine.text.tool_formats import find_tool_format
from pyengine.text.tools import Offer, check_tools
from pyengine.text.validation import AnswerForm, Limits, PreparedPrompt, PreparedRequest

POOLED = SamplingParams(max_tokens=0, seed=0)  # a prompt that is embedded: nothing is drawn


@dataclass(frozen=True)
class ModelText:
    """The text side of a checkpoint.

    Attributes:
        tokenizer: see ``Tokenizer``.
        chat_template: None when the checkpoint has none that works; ``no_chat`` says why.
        sampling_defaults: SamplingParams fields that generation_config.json sets.
        warnings: one line each, for the operator.
        pooling: how embeddings are made when a request does not say.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pooling: Pooling = Pooling.MEAN
    no_chat: str = "this model has no chat template; use /v1/completions"


def load_model_text(model: str | Path, tokenizer: str | Path | None = None, random_weights: bool = False) -> ModelText:
    """Read a checkpoint's tokenizer, chat template and sampling defaults; ``tokenizer`` when they lie elsewhere.

    With ``random_weights`` a folder may lack a tokenizer: texts are bytes then. Raises ModelError naming the file that
    is missing or broken. A broken chat template only costs chat.
    """
    if random_weights and tokenizer is None and not has_tokenizer(Path(model)):
        return ModelText(make_byte_tokenizer(), warnings=[f"{model}: no tokenizer; text is taken as bytes"])
    loaded = load_tokenizer(tokenizer or model)
    defaults = read_sampling_defaults(Path(model))
    pooling, warnings = read_pooling(Path(model))
    try:
        SamplingParams(**defaults)
    except RequestError as error:
        raise ModelError(f"{Path(model) / 'generation_config.json'}: {error.message}") from None
    if loaded.chat_template is None:
        return ModelText(loaded, sampling_defaults=defaults, warnings=warnings, pooling=pooling)
    try:
        template = ChatTemplate(loaded.chat_template, loaded.facts.named_tokens)
    except ModelError as error:
        reason = f"this model's chat template cannot be used: {error}"
        warnings = [*warnings, reason]
        return ModelText(loaded, sampling_defaults=defaults, warnings=warnings, pooling=pooling, no_chat=reason)
    return ModelText(loaded, template, defaults, [*warnings, *self_check(template, loaded)], pooling)


class TextProcessor:
    """Requests to ids, ids to text, for one model as its engine runs it."""

    def __init__(
        self, text: ModelText, limits: Limits, served_names: Sequence[str] = (), splits_reasoning: bool = True
    ):
        self.text = text
        self.tokenizer = text.tokenizer
        self.limits = limits
        self.served_names = tuple(served_names)
        template = text.chat_template.source if text.chat_template is not None else ""
        self.tool_format = find_tool_format(template)
        self._thinking = find_reasoning_format(template)
        self.reasoning = self._thinking if splits_reasoning else None
        # An id that the logits do not have can never be sampled, nor may it be asked for.
        self.eos_token_ids = tuple(i for i in text.tokenizer.eos_token_ids if i < limits.vocab_size)

    def chat(self, body: bytes) -> PreparedRequest:
        """A /v1/chat/completions body, parsed, checked, rendered and tokenised."""
        return self.prepare_chat(validation.parse_chat(body, self.limits))

    def completion(self, body: bytes) -> PreparedRequest:
        """A /v1/completions body, parsed, checked and tokenised."""
        return self.prepare_completion(validation.parse_completion(body, self.limits))

    def responses(self, body: bytes) -> tuple[ResponsesRequest, PreparedRequest]:
        """A /v1/responses body, parsed, checked, rendered and tokenised."""
        request, chat = parse_responses(body, self.limits)
        with renamed(responses.NAMES):
            return request, self.prepare_chat(chat)

    def anthropic(self, body: bytes) -> PreparedRequest:
        """A /v1/messages body, parsed, checked, rendered and tokenised."""
        chat = self._think_as_it_can(parse_messages(body, self.limits))
        with renamed(anthropic.NAMES):
            return self.prepare_chat(chat)

    def anthropic_count(self, body: bytes) -> int:
        """How many tokens the prompt of a /v1/messages body has."""
        request = self._think_as_it_can(parse_count(body, self.limits))
        validation.check_model(request.model, self.served_names)
        with renamed(anthropic.NAMES):
            text = self._render_chat(request, self._tools(request.tools, request.tool_choice))
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _think_as_it_can(self, chat: ChatRequest) -> ChatRequest:
        """A request of Anthropic's, where thinking is up to the template: one without a switch has none to turn, and
        one that does not think keeps any budget.
        """
        template = self.text.chat_template
        if template is not None and not (chat.chat_template_kwargs or {}).keys() <= template.open_variables:
            chat.chat_template_kwargs = None
        if self._thinking is None:
            chat.thinking_token_budget = None
        return chat

    def prepare_chat(self, request: ChatRequest) -> PreparedRequest:
        params = self._check(request, num_prompts=1)
        offer = self._tools(request.tools, request.tool_choice)
        text = self._render_chat(request, offer)
        continued = validation.continued_text(request.messages, request.continue_final_message)
        budget = self._budget(request.thinking_token_budget)
        params = self._behind_thinking(self._strict(offer, params), text, budget, continued)
        params = self._forced(offer, params, request.parallel_tool_calls)
        # The template writes special tokens itself; another BOS in front would be a second one.
        ids = self.tokenizer.encode(text, add_special_tokens=bool(request.add_special_tokens))
        ids = self._truncated(ids, params.truncate_prompt_tokens, params)
        form = dataclasses.replace(self._form(request), message=self._message_form(request, offer, text, continued))
        return self._prepared(request, [self._prompt(ids, params, text, "messages")], form)

    def _render_chat(self, request: ChatRequest | TokenizeRequest, offer: Offer) -> str:
        continues = request.continue_final_message
        opens = validation.generation_prompt(request.add_generation_prompt, continues)
        variables = request.chat_template_kwargs or {}
        if isinstance(request, ChatRequest) and self.text.chat_template is not None:
            known, thinks = self.text.chat_template.open_variables, self.reasoning is not None
            variables = {**effort_variables(request.reasoning_effort, known, thinks), **variables}
        return self.render(request.messages, variables, opens, continues, list(offer.tools) or None)

    def _tools(self, tools: object, choice: object) -> Offer:
        """The tools to offer; refused where the chat template has no place for them or an unknown format."""
        offer = check_tools(tools, choice)
        if offer.tools and self.text.chat_template is not None and self.tool_format is None:
            raise RequestError("tools are not supported by this model's chat template", param="tools")
        return offer

    def _strict(self, offer: Offer, params: SamplingParams) -> SamplingParams:
        """A call that may be, of a tool whose schema is to bind it."""
        if not offer.strict:
            return params
        if params.grammar is not None:
            where = f"tools[{offer.first_strict}].function.strict"
            raise RequestError("a strict tool cannot be offered beside an answer of another format", param=where)
        return msgspec.structs.replace(params, grammar=strict_grammar(offer, self.tool_format, self.tokenizer))

    def _forced(self, offer: Offer, params: SamplingParams, parallel: bool) -> SamplingParams:
        """A call that must be is a matter of grammar: the answer is calls and nothing else."""
        if not offer.forced:
            return params
        if params.grammar is not None:
            raise RequestError("tool_choice cannot force a call of an answer in another format", param="tool_choice")
        grammar = forced_grammar(offer, self.tool_format, parallel, self.tokenizer)
        return msgspec.structs.replace(params, grammar=grammar, thinking=None)

    def _behind_thinking(
        self, params: SamplingParams, prompt: str, budget: int | None, continued: str
    ) -> SamplingParams:
        """A grammar binds the answer, not the thinking before it; a budget binds the thinking."""
        if params.grammar is None and budget is None:
            return params
        marks = self._thinking if params.grammar is None else self.reasoning
        return msgspec.structs.replace(params, thinking=thinking_before(marks, prompt, budget, continued))

    def _budget(self, budget: int | None) -> int | None:
        """Tokens of thinking that a request allows; None: all. Refused where there is no telling what thinking is."""
        if budget is None:
            return None
        validation.RANGES["thinking_token_budget"].check("thinking_token_budget", budget)
        if budget >= 0 and self._thinking is None:
            raise RequestError(
                "thinking_token_budget needs a model whose chat template marks its thinking, which this one's does "
                "not: leave it out, or bound the answer by max_tokens",
                param="thinking_token_budget",
            )
        return budget if budget >= 0 else None

    def _message_form(self, request: ChatRequest, offer: Offer, prompt: str, continued: str) -> MessageForm:
        tools = self.tool_format if offer.tools else None
        reasoning = self.reasoning
        place = Place.BEHIND if reasoning is None else find_place(reasoning, prompt, continued)
        if continued and place is Place.BEHIND:
            reasoning = None  # the answer itself is under way
        if offer.forced:
            tools, reasoning = forced_format(offer, tools, request.parallel_tool_calls), None
        return MessageForm(
            tools=tools,
            tool_names=offer.names,
            names_tool=offer.is_named,
            parallel_tool_calls=request.parallel_tool_calls,
            reasoning=reasoning,
            inside_reasoning=reasoning is not None and place is Place.INSIDE,
            shows_reasoning=request.include_reasoning,
        )

    def tokenize(self, body: bytes) -> tuple[list[int], list[str] | None]:
        """A /tokenize body: ids, and their texts where they are asked for."""
        request = validation.parse(body, TokenizeRequest, self.limits)
        validation.check_model(request.model, self.served_names)
        if (request.prompt is None) == (request.messages is None):
            raise RequestError("expected either prompt or messages", param="prompt")
        if request.prompt is not None:
            validation.check_prompt_alone(request)
            ids = self.tokenizer.encode(request.prompt, request.add_special_tokens is not False)
        else:
            text = self._render_chat(request, self._tools(request.tools, None))
            ids = self.tokenizer.encode(text, bool(request.add_special_tokens))
        return ids, [self.tokenizer.decode((i,), False) for i in ids] if request.return_token_strs else None

    def detokenize(self, body: bytes) -> str:
        """A /detokenize body: the text of its ids, special tokens included."""
        request = validation.parse(body, DetokenizeRequest, self.limits)
        validation.check_model(request.model, self.served_names)
        if request.tokens:
            validation.check_vocabulary(request.tokens, self.limits, "tokens")
        return self.tokenizer.decode(request.tokens, skip_special_tokens=False)

    def prepare_completion(self, request: CompletionRequest) -> PreparedRequest:
        prompts = validation.split_prompts(request.prompt)
        params = self._check(request, len(prompts))
        special = request.add_special_tokens is not False
        return self._prepared(request, self._prompts(request, prompts, params, special), self._form(request))

    def embeddings(self, body: bytes) -> tuple[EmbeddingRequest, PreparedRequest]:
        """A /v1/embeddings body, parsed, checked and tokenised."""
        request = validation.parse(body, EmbeddingRequest, self.limits)
        validation.check_model(request.model, self.served_names)
        validation.check_service(request.priority, request.cache_salt, self.limits)
        validation.check_dimensions(request.dimensions, self.limits)
        inputs = validation.split_prompts(request.input, "input")
        validation.check_counts(len(inputs), 1, self.limits, "input")
        special = request.add_special_tokens is not False
        prepared = PreparedRequest(
            prompts=tuple(self._prompts(request, inputs, POOLED, special, "input")),
            eos_token_ids=(),
            priority=request.priority,
            cache_salt=request.cache_salt,
            pooling=self.pooling(request.pooling),
        )
        return request, prepared

    def pooling(self, wanted: str | None) -> Pooling:
        """What a client asked for, else what the checkpoint says. Raises RequestError for anything else."""
        try:
            return self.text.pooling if wanted is None else Pooling(wanted)
        except ValueError:
            raise RequestError(f"pooling must be mean or last, got {wanted!r:.80}", param="pooling") from None

    def _prompts(
        self,
        request: CompletionRequest | EmbeddingRequest,
        prompts: Sequence[str | list[int]],
        params: SamplingParams,
        special: bool,
        param: str = "prompt",
    ) -> list[PreparedPrompt]:
        prepared, num_tokens = [], 0
        for prompt in prompts:
            ids, text = self._ids_of(prompt, special, param)
            kept = self._truncated(ids, request.truncate_prompt_tokens, params)
            prepared.append(self._prompt(kept, params, text if kept == ids else None, param))
            num_tokens += len(prepared[-1].token_ids)
            if num_tokens > self.limits.max_prompt_tokens:
                limit = self.limits.max_prompt_tokens
                raise RequestError(f"the prompts of one request may have {limit} tokens together", param=param)
        return prepared

    def prepare(
        self, prompt: str | Sequence[int], params: SamplingParams, add_special_tokens: bool = True
    ) -> PreparedPrompt:
        """One prompt, text or ids, with parameters that were checked by ``check_params``."""
        ids, text = self._ids_of(prompt, add_special_tokens)
        kept = self._truncated(ids, params.truncate_prompt_tokens, params)
        return self._prompt(kept, params, text if kept == ids else None)

    def _ids_of(
        self, prompt: str | Sequence[int], add_special_tokens: bool, param: str = "prompt"
    ) -> tuple[list[int], str | None]:
        if not isinstance(prompt, str):
            return list(prompt), None
        if not prompt:
            raise RequestError(f"{param} is empty", param=param)
        return self.tokenizer.encode(prompt, add_special_tokens), prompt

    def prepare_messages(
        self,
        messages: object,
        params: SamplingParams,
        tools: list[dict[str, Any]] | None = None,
        thinking_token_budget: int | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        /,
        **variables: Any,
    ) -> PreparedPrompt:
        """One conversation as ``LLM.chat`` takes it; keyword arguments become variables of the chat template."""
        params = self.check_params(params)
        offered = list(self._tools(tools, None).tools) or None
        opens = validation.generation_prompt(add_generation_prompt, continue_final_message)
        text = self.render(messages, variables, opens, continue_final_message, offered)
        continued = validation.continued_text(messages, continue_final_message)
        params = self._behind_thinking(params, text, self._budget(thinking_token_budget), continued)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        ids = self._truncated(ids, params.truncate_prompt_tokens, params)
        return self._prompt(ids, params, text, "messages")

    def prepare_offline(self, prompt: object, params: SamplingParams) -> PreparedPrompt:
        """A prompt as ``LLM.generate`` takes it: text, ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``."""
        if isinstance(prompt, Mapping):
            unknown = next((key for key in prompt if key not in ("prompt", "prompt_token_ids")), None)
            if unknown is not None or len(prompt) != 1:
                raise RequestError(f"a prompt object has prompt or prompt_token_ids, got {list(prompt)!r:.200}")
            prompt = next(iter(prompt.values()))
        forms = validation.split_prompts(prompt)
        if len(forms) != 1 or (not isinstance(prompt, str) and isinstance(forms[0], str)):
            raise RequestError("one prompt is a string or a list of token ids", param="prompt")
        return self.prepare(forms[0], self.check_params(params))

    def check_params(self, params: SamplingParams) -> SamplingParams:
        """The limits of this model on parameters that were built elsewhere."""
        validation.check_counts(1, params.n, self.limits)
        params = with_grammar(validation.check_params(params, self.limits))
        return with_bad_words(params, self.tokenizer, self.limits.vocab_size)

    def default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets from this checkpoint."""
        return SamplingParams(**self.text.sampling_defaults)

    def render(
        self,
        messages: object,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """Messages through the chat template; a RequestError that says so when the model has none."""
        if self.text.chat_template is None:
            raise RequestError(self.text.no_chat, param="messages", code="no_chat_template")
        return self.text.chat_template.render(
            messages, add_generation_prompt, tools, variables, continue_final_message=continue_final_message
        )

    def generations(self, prompt: PreparedPrompt, form: AnswerForm | None = None) -> list[Generation]:
        """The n growing answers to a prompt."""
        form = form or AnswerForm()
        marks = unique_ids([self.tokenizer.token_to_id(mark) for mark in form.message.marks], self.limits.vocab_size)
        return [
            Generation(self.tokenizer, prompt.params, prompt.token_ids, i, form.return_token_ids, frozenset(marks))
            for i in range(prompt.params.n)
        ]

    def prompt_text(self, prompt: PreparedPrompt) -> str:
        """What ``echo`` repeats."""
        if prompt.text is not None:
            return prompt.text
        return self.tokenizer.decode(prompt.token_ids, prompt.params.skip_special_tokens)

    def _check(self, request: ChatRequest | CompletionRequest, num_prompts: int) -> SamplingParams:
        validation.check_model(request.model, self.served_names)
        validation.check_options(request, self.limits)
        params = validation.sampling_params(request, self.text.sampling_defaults, self.limits)
        validation.check_counts(num_prompts, params.n, self.limits)
        return with_bad_words(params, self.tokenizer, self.limits.vocab_size)

    def _prompt(
        self, token_ids: list[int], params: SamplingParams, text: str | None = None, param: str = "prompt"
    ) -> PreparedPrompt:
        validation.check_token_ids(token_ids, self.limits, param, num_more=params.max_tokens != 0)
        return PreparedPrompt(token_ids, validation.complete_params(params, len(token_ids), self.limits), text)

    def _truncated(self, token_ids: list[int], num_kept: int | None, params: SamplingParams) -> list[int]:
        return validation.truncate(token_ids, num_kept, params, self.tokenizer.bos_token_id, self.limits)

    def _form(self, request: ChatRequest | CompletionRequest) -> AnswerForm:
        return AnswerForm(
            echo=isinstance(request, CompletionRequest) and request.echo,
            prompt_logprobs=request.prompt_logprobs,
            return_token_ids=request.return_token_ids,
            tokens_as_ids=request.return_tokens_as_token_ids,
        )

    def _prepared(
        self, request: ChatRequest | CompletionRequest, prompts: list[PreparedPrompt], form: AnswerForm
    ) -> PreparedRequest:
        validation.check_prompt_scores(prompts, self.limits)
        options = request.stream_options
        return PreparedRequest(
            prompts=tuple(prompts),
            eos_token_ids=self.eos_token_ids,
            form=form,
            stream=request.stream,
            include_usage=options is not None and options.include_usage,
            continuous_usage=options is not None and options.continuous_usage_stats,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
