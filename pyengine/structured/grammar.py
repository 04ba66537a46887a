"""What a client asks for, as one serialised grammar; or a RequestError that says why it cannot be.

The result is a string, so it travels to the engine as any parameter does. It is made and checked in a process of its
own (compiler_process.py), and remembered: agents send the same schema with every request.
"""

from __future__ import annotations

import json
from functools import lru_cache
from types import NoneType
from typing import Any

from pyengine.errors import RequestError
from pyengine.structured.compiler_process import CompilerEnded, CompilerProcesses

MAX_SOURCE_CHARS = 1 << 18
MAX_CHOICES = 4096
MAX_WHITESPACE_CHARS = 256
KINDS = ("json", "json_object", "regex", "choice", "grammar")
SPACING = ("whitespace_pattern", "disable_any_whitespace")  # of JSON
FIELDS = (*KINDS, *SPACING)

_processes = CompilerProcesses()
_compiled = lru_cache(maxsize=256)(_processes.compile)


def compile_grammar(spec: dict[str, Any], param: str = "structured_outputs", where: str | None = None) -> str:
    """The grammar for a specification with exactly one of: json (a schema as object or text), json_object (true),
    regex, choice (a list of strings), grammar (Lark). Beside either JSON: whitespace_pattern (a regular expression) or
    disable_any_whitespace (true). Raises RequestError naming what is wrong with it.

    Args:
        param: the request's field that holds the specification.
        where: that of the source itself, where it is another than the specification's.
    """
    if not isinstance(spec.get("json_object"), (bool, NoneType)):
        raise RequestError(f"{param}.json_object must be a boolean, got {spec['json_object']!r:.80}", param=param)
    given = [kind for kind in KINDS if spec.get(kind) is not None and spec[kind] is not False]
    unknown = next((key for key in spec if key not in FIELDS), None)
    if unknown is not None:
        raise RequestError(f"{param} has no field {unknown[:80]!r}; it has {', '.join(FIELDS)}", param=param)
    if len(given) != 1:
        raise RequestError(f"{param} needs exactly one of {', '.join(KINDS)}, got {len(given)}", param=param)
    kind = given[0]
    source = _source_text(kind, spec[kind], param)
    if len(source) > MAX_SOURCE_CHARS:
        text = f"{where or f'{param}.{kind}'} may have {MAX_SOURCE_CHARS} characters, got {len(source)}"
        raise RequestError(text, param=where or param)
    try:
        grammar, problem = _compiled(kind, source, _whitespace(spec, kind, param))
    except CompilerEnded as error:  # not remembered: somebody else may have ended it
        grammar, problem = "", str(error)
    if problem:
        text = f"{where or f'{param}.{kind}'} cannot be used: {' '.join(problem.split())[:500]}"
        raise RequestError(text, param=where or param)
    return grammar


def _source_text(kind: str, value: Any, param: str) -> str:
    """Every kind as text, so that equal specifications meet in the cache."""
    if kind == "json":
        return value if isinstance(value, str) else _dump(value, param)
    if kind == "json_object":
        return ""
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise RequestError(f"{param}.choice must be a list of non-empty strings", param=param)
        if len(value) > MAX_CHOICES:
            raise RequestError(f"{param}.choice may have {MAX_CHOICES} entries, got {len(value)}", param=param)
        return _dump(value, param)
    if not isinstance(value, str):
        raise RequestError(f"{param}.{kind} must be a string, got {type(value).__name__}", param=param)
    return value


def _whitespace(spec: dict[str, Any], kind: str, param: str) -> str | None:
    """The pattern of what may stand between the tokens of JSON: "" for nothing, None for what is usual."""
    pattern, disabled = (spec.get(name) for name in SPACING)
    given = next((name for name in SPACING if spec.get(name) not in (None, False)), None)
    if not isinstance(disabled, (bool, NoneType)):
        raise RequestError(f"{param}.disable_any_whitespace must be a boolean, got {disabled!r:.80}", param=param)
    if given is None:
        return None
    if kind not in ("json", "json_object"):
        raise RequestError(f"{param}.{given} is for json and json_object, got {kind}", param=param)
    if disabled:
        if pattern is not None:
            raise RequestError(f"{param} has both whitespace_pattern and disable_any_whitespace", param=param)
        return ""
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_WHITESPACE_CHARS:
        text = f"{param}.whitespace_pattern must be a regular expression of at most {MAX_WHITESPACE_CHARS} characters"
        raise RequestError(f"{text}, got {pattern!r:.80}", param=param)
    return pattern


def _dump(value: Any, param: str) -> str:
    try:
        return json.dumps(value, sort_keys=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{param} holds something that is not JSON", param=param) from None
