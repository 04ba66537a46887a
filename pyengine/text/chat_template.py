"""A checkpoint's chat template: messages to one prompt text.

The template decides everything about the text; this decides how it is asked. Whether it expects message content as a
string or as a list of parts is found out once by rendering a probe, so that both kinds of request reach both kinds of
template. Whatever a template raises is the request's error (a 400), never the server's. ``self_check`` looks at what a
template makes of a small conversation and says what would quietly ruin answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import NoneType
from typing import Any

import jinja2
import jinja2.meta

from pyengine.errors import ModelError, RequestError
from pyengine.text.messages import check_messages
from pyengine.text.template_sandbox import TemplateEnvironment, TemplateLimitError
from pyengine.text.tokenizer import Tokenizer
from pyengine.text.unknown_fields import unknown_field

MAX_SOURCE = 1 << 20  # characters

# Variables of a template that a request must not set.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_MARK = "pyengine-probe"


class ChatTemplate:
    """A compiled template. ``variables`` are always there for it, such as ``bos_token``.

    Attributes:
        open_variables: names that the template looks at and that a request may set.

    Raises ModelError when the source is not a template.
    """

    def __init__(self, source: str, variables: dict[str, str] | None = None):
        if len(source) > MAX_SOURCE:
            raise ModelError(f"the chat template has {len(source)} characters, the limit is {MAX_SOURCE}")
        self.source = source
        self._variables = dict(variables or {})
        self._environment = TemplateEnvironment()
        try:
            self._template = self._environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(self._environment.parse(source))
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise ModelError(f"the chat template does not compile: {error}") from None
        closed = RESERVED | self._variables.keys() | self._environment.globals.keys()
        self.open_variables = {name for name in names - closed if not name.endswith("_token")}  # the tokenizer's
        self._knows_developer = "developer" in source
        self.accepts_string = self._shows(_MARK)
        self.accepts_parts = self._shows([{"type": "text", "text": _MARK}])

    def render(
        self,
        messages: object,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt text; raises RequestError when messages are wrong or the template refuses them.

        ``variables`` are the client's; a mapping, so that none of its names can reach our own arguments. One that the
        template does not look at is an unknown field: setting it would change nothing. With
        ``continue_final_message`` the prompt ends where the content of the last message ends.
        """
        checked = check_messages(messages)
        if not continue_final_message:
            return self._render_checked(checked, add_generation_prompt, tools, variables or {})
        mark = secrets.token_hex(16)  # put behind the content, it shows where the template has it end
        text = self._render_checked([*checked[:-1], _marked(checked[-1], mark)], False, tools, variables or {})
        before, found, _ = text.rpartition(mark)
        if not found:
            raise RequestError("the chat template drops the final message's content", param="continue_final_message")
        return before

    def _render_checked(
        self, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: Mapping[str, Any]
    ) -> str:
        prepared = [self._prepare(message) for message in messages]
        reserved = next((name for name in variables if name in RESERVED or name in self._variables), None)
        if reserved is not None:
            raise RequestError(f"chat_template_kwargs cannot set {reserved}", param=f"chat_template_kwargs.{reserved}")
        for name in variables.keys() - self.open_variables:
            has = ", ".join(sorted(self.open_variables)) or "none"
            path = f"chat_template_kwargs.{name}"
            unknown_field(path, f"this model's chat template has no variable {name!r:.80} (it has: {has[:400]})")
        variables = {name: value for name, value in variables.items() if name in self.open_variables}
        for name, value in variables.items():
            if not isinstance(value, (bool, int, float, str, NoneType)):
                path, kind = f"chat_template_kwargs.{name}", type(value).__name__
                raise RequestError(f"{path} must be a boolean, number, string or null, got {kind}", param=path)
        try:
            return self._render(prepared, add_generation_prompt, tools, variables)
        except jinja2.TemplateError as error:
            raise _refused(error.message or type(error).__name__) from None
        except Exception as error:
            raise _refused(f"{type(error).__name__}: {error}") from None

    def _render(
        self, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: Mapping[str, Any]
    ) -> str:
        fixed = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": None,
        }
        return self._environment.render_limited(self._template, {**self._variables, **variables, **fixed})

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message in the form that this template expects."""
        content = message["content"]
        if isinstance(content, list) and not self.accepts_parts:
            content = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and self.accepts_parts and not self.accepts_string:
            content = [{"type": "text", "text": content}]
        role = message["role"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        return {**message, "role": role, "content": content}

    def _shows(self, content: str | list[dict[str, str]]) -> bool:
        """Whether such content comes out as its text, neither dropped nor printed as a Python list."""
        try:
            text = self._render([{"role": "user", "content": content}], True, None, {})
        except TemplateLimitError as error:
            raise ModelError(f"the chat template cannot render one short message: {error}") from None
        except Exception:
            return False
        return _MARK in text and "'type'" not in text and '"type"' not in text


def _marked(message: dict[str, Any], mark: str) -> dict[str, Any]:
    """The message with ``mark`` behind its text."""
    content = message["content"]
    if isinstance(content, list) and content:
        last = {**content[-1], "text": content[-1]["text"] + mark}
        return {**message, "content": [*content[:-1], last]}
    if not content:
        raise RequestError("the final message has no content to continue", param="continue_final_message")
    return {**message, "content": content + mark}


def _refused(reason: str) -> RequestError:
    return RequestError(f"the chat template refuses these messages: {reason[:500]}", param="messages")


def self_check(template: ChatTemplate, tokenizer: Tokenizer) -> list[str]:
    """What is odd about a template, one line each; empty when all is well."""
    marks = ("first-mark", "second-mark", "third-mark")
    roles = ("user", "assistant", "user")
    conversation = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = _try(template, conversation)
    if text is None:
        return ["the chat template fails on a plain conversation of user, assistant, user"]
    warnings = [
        f"the chat template drops a {role} message" for role, mark in zip(roles, marks, strict=True) if mark not in text
    ]
    with_system = _try(template, [{"role": "system", "content": "system-mark"}, *conversation])
    if with_system is not None and "system-mark" not in with_system:
        warnings.append("the chat template drops the system message")
    return (
        warnings + _check_tokens(text, marks, tokenizer) + _check_generation_prompt(template, conversation, tokenizer)
    )


def _try(template: ChatTemplate, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str | None:
    try:
        return template.render(messages, add_generation_prompt)
    except RequestError:
        return None


def _check_tokens(text: str, marks: tuple[str, ...], tokenizer: Tokenizer) -> list[str]:
    warnings = []
    ids = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        warnings.append("the chat template begins with the BOS token twice")
    plain = tokenizer.encode(marks[0], add_special_tokens=True)
    if bos is not None and plain[:1] == [bos] and ids[:1] != [bos]:
        warnings.append("the chat template does not begin with the BOS token that this tokenizer puts before texts")
    after_answer = tokenizer.encode(text.partition(marks[1])[2].partition(marks[2])[0], add_special_tokens=False)
    if tokenizer.eos_token_ids and not set(after_answer) & set(tokenizer.eos_token_ids):
        warnings.append("the chat template ends no assistant message with an end-of-sequence token: answers may run on")
    return warnings


def _check_generation_prompt(template: ChatTemplate, conversation: list[dict], tokenizer: Tokenizer) -> list[str]:
    """Templates whose user turn already ends with a prompt for the answer (``[/INST]``) need no further one."""
    with_prompt, without = _try(template, conversation), _try(template, conversation, False)
    if with_prompt is None or with_prompt != without:
        return []
    tail = with_prompt.rpartition(conversation[-1]["content"])[2]
    for name in tokenizer.facts.named_tokens.values():
        tail = tail.replace(name, "")
    return [] if tail.strip() else ["the chat template adds no generation prompt: answers may continue the question"]
