"""A Jinja environment for chat templates that come with a checkpoint, which is to say from strangers.

Jinja's immutable sandbox keeps a template away from Python. This adds what it does not limit: the loop iterations,
calls and seconds of one rendering, the length of what an operator, method or filter may build, and how much it writes.
What ``transformers`` offers to templates is offered here too: ``raise_exception``, ``strftime_now``, ``tojson``, loop
controls and the ``generation`` block.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

MAX_STEPS = 2_000_000  # loop iterations and calls of one rendering
MAX_SECONDS = 5.0  # looked at with each step
MAX_LENGTH = 1 << 24  # characters of a string, entries of a list, anywhere in a template
MAX_OUTPUT = 1 << 24  # characters of one rendering
MAX_WRITTEN = 1 << 26  # characters written on the way there, into variables and macro results too
MAX_NUMBER = 1 << 62  # a template's integers stay below, so that powers and widths stay harmless


class TemplateLimitError(jinja2.TemplateError):
    """A template exceeded a limit of the sandbox."""


class _Budget(threading.local):
    """What is left for the rendering that runs in this thread."""

    steps = 0
    written = 0
    deadline_s = 0.0


class GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's part for training; rendering just passes its content on."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with budgets. One instance may serve several threads; the budget is per thread and rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        extensions = (GenerationBlock, jinja2.ext.loopcontrols)
        super().__init__(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, extensions=extensions)
        self._budget = _Budget()
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _tojson
        self.globals.pop("lipsum", None)
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_make_dict
        )

    def render_limited(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """The template's output; raises TemplateLimitError or whatever the template raises."""
        self._budget.steps, self._budget.written = MAX_STEPS, MAX_WRITTEN
        self._budget.deadline_s = time.monotonic() + MAX_SECONDS
        pieces, length = [], 0
        for piece in template.generate(variables):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise TemplateLimitError(f"the template's output exceeds {MAX_OUTPUT} characters")
            pieces.append(piece)
        return "".join(pieces)

    def spend(self) -> None:
        """One step of the budget."""
        self._budget.steps -= 1
        if self._budget.steps < 0 or time.monotonic() > self._budget.deadline_s:
            raise TemplateLimitError(f"the template takes more than {MAX_STEPS} steps or {MAX_SECONDS} seconds")

    def counted(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The items of a ``for``, each of which costs a step."""
        for item in iterable:
            self.spend()
            yield item

    def written(self, value: Any) -> str:
        """Each piece that a template writes, wherever to: its literal text and its ``{{ expressions }}``."""
        text = _text_of(value)
        self._budget.written -= len(text)
        if self._budget.written < 0:
            raise TemplateLimitError(f"the template writes more than {MAX_WRITTEN} characters")
        return text

    def joined(self, *parts: Any) -> str:
        """The ``~`` operator."""
        texts = [_text_of(part) for part in parts]
        return "".join(_sized(texts, sum(map(len, texts))))

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend()
        method = getattr(function, "__wrapped__", function)  # Jinja wraps str.format already
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_growth(method.__name__, owner, args)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        self.spend()
        _check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateSyntaxError("recursive loops are not supported", loop.lineno, name, filename)
            loop.iter = _method_call("counted", [loop.iter], loop.lineno)
        _replace_concat(tree)
        for output in list(tree.find_all(jinja2.nodes.Output)):
            output.nodes = [_written(node) for node in output.nodes]
        return tree


def _method_call(name: str, arguments: list[jinja2.nodes.Expr], line: int) -> jinja2.nodes.Call:
    function = jinja2.nodes.EnvironmentAttribute(name)
    return jinja2.nodes.Call(function, arguments, [], None, None).set_lineno(line)


def _written(node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
    if isinstance(node, jinja2.nodes.TemplateData):
        node = jinja2.nodes.Const(node.data).set_lineno(node.lineno)
    return _method_call("written", [node], node.lineno)


def _replace_concat(node: jinja2.nodes.Node) -> None:
    """``a ~ b`` compiles to a plain join that nothing intercepts; make it a checked call."""
    for name, value in node.iter_fields():
        if isinstance(value, jinja2.nodes.Concat):
            setattr(node, name, _method_call("joined", value.nodes, value.lineno))
        elif isinstance(value, list):
            value[:] = [
                _method_call("joined", item.nodes, item.lineno) if isinstance(item, jinja2.nodes.Concat) else item
                for item in value
            ]
    for child in node.iter_child_nodes():
        _replace_concat(child)


def _sized(value: Any, length: int) -> Any:
    if length > MAX_LENGTH:
        raise TemplateLimitError(f"the template builds a value longer than {MAX_LENGTH}")
    return value


def _text_of(value: Any) -> str:
    """``str(value)``, checked first where a container repeats what it holds."""
    if not isinstance(value, str):
        _check_weight(value)
    return str(value)


def _check_weight(value: Any) -> None:
    """Count what a nested container would print, up to the limit."""
    weight, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        weight += len(item) if isinstance(item, str) else 1
        _sized(None, weight + len(stack))


def _check_binop(operator: str, left: Any, right: Any) -> None:
    """Refuse what would be too large before it is computed."""
    lengths = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
    numbers = [side for side in (left, right) if isinstance(side, int)]
    if operator == "+" and lengths:
        _sized(None, sum(lengths))
    elif operator == "*" and lengths:
        _sized(None, lengths[0] * max([0, *numbers]))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
    elif operator == "**" and any(abs(number) > 1 << 12 for number in numbers):
        raise TemplateLimitError("the template raises too large a power")
    elif any(abs(number) > MAX_NUMBER for number in numbers):
        raise TemplateLimitError("the template computes with too large a number")


def _check_format(pattern: str) -> None:
    """Field widths, the one way in which formatting makes much out of little."""
    if re.search(r"[0-9]{5}|\*|\{[^{}]*\{", pattern):
        raise TemplateLimitError("the template formats with a field width that is too large or computed")


def _check_growth(name: str, owner: str, args: tuple[Any, ...]) -> None:
    """String methods whose result may be far longer than what they are called on."""
    if name in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        width = max((arg for arg in args if isinstance(arg, int)), default=8)
        _sized(None, width * (len(owner) + 1 if name == "expandtabs" else 1))
    elif name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        _sized(None, len(owner) + owner.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        _sized(None, sum(len(item) + len(owner) for item in args[0] if isinstance(item, str)))
    elif name in ("format", "format_map"):
        _check_format(owner)
    elif name == "translate":
        raise TemplateLimitError("the template calls str.translate, which is not supported; use replace")


_TEXT_FILTERS = frozenset(
    "capitalize center e escape forceescape format indent lower pprint replace string striptags title trim upper "
    "urlize urlencode wordcount wordwrap xmlattr".split()
)
_NUMBER_FILTERS = frozenset({"wordwrap", "indent", "center", "batch", "slice", "urlize"})


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments and result bounded; markers such as pass_environment are kept by ``wraps``."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if name in _TEXT_FILTERS:
            for arg in args:
                if isinstance(arg, (list, tuple, dict)):
                    _check_weight(arg)
        if name == "replace" and len(args) >= 4 and all(isinstance(arg, str) for arg in args[1:4]):
            _check_growth(name, args[1], args[2:4])
        elif name in _NUMBER_FILTERS:
            _check_filter_numbers(name, args, kwargs)
        elif name == "format":
            _check_format(str(args[0]))
        elif name == "join":
            args = _materialised(args)
        result = function(*args, **kwargs)
        return _sized(result, len(result)) if isinstance(result, (str, list)) else result

    return bounded


def _check_filter_numbers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for number in (*args, *kwargs.values()):
        if isinstance(number, int) and abs(number) > 1 << 12:
            raise TemplateLimitError(f"the template's {name} filter takes the number {number}, the limit is {1 << 12}")


def _materialised(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of ``join`` with its iterable as a list whose total length is known to be harmless."""
    position = next((i for i, arg in enumerate(args) if not isinstance(arg, jinja2.nodes.EvalContext)), 0)
    items = list(args[position])
    separators = [len(arg) for arg in args[position + 1 :] if isinstance(arg, str)]
    _check_weight(items)
    total = sum(len(item) for item in items if isinstance(item, str)) + len(items) * sum(separators)
    return (*args[:position], _sized(items, total), *args[position + 1 :])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as ``transformers`` renders it for templates: no HTML escapes."""
    if isinstance(indent, int) and indent > 64:
        raise TemplateLimitError("the template's tojson filter takes an indent above 64")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces, length = [], 0
    for piece in encoder.iterencode(value):
        length += len(piece)
        pieces.append(_sized(piece, length))
    return "".join(pieces)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:256])


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """``namespace()`` without underscore names, which lead into Python's internals."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace cannot hold {name!r}: names must not begin with an underscore")
