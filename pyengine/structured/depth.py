"""How deep a grammar leads: from schema to schema, from rule to rule.

llguidance follows both by recursion, on the stack of the thread that asks it, and a stack that overflows ends the
process with all its streams. So what may lead deeper than a limit is refused before llguidance sees it.

The bound is the longest way through the graph of references, whatever the order they are followed in; what refers to
itself in a ring counts with all of the ring.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Stacks have 8 MiB. Objects that hold the next one in a property, by references, took 7.6 KB of it each (1,100 ended
# the process, 800 did not), which are four containers; a rule took 2.8 (3,000 and 2,500).
MAX_CONTAINERS = 1600
MAX_RULES = 1000

_DEFINITION = re.compile(r"^[ \t]*[?!]*([A-Za-z_][A-Za-z0-9_]*)(?:\.-?\d+)?(?:\[[^\]\n]*\])*[ \t]*:", re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|//[^\n]*')
_SCHEMA = re.compile(r"%json\s*")
_decoder = json.JSONDecoder()
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class TooDeep(ValueError):
    """Says what leads too deep, and the limit."""


def check_schema_depth(schema: object) -> None:
    """Raises TooDeep for a JSON schema (parsed) that leads through more than MAX_CONTAINERS objects and lists."""
    by_id: dict[int, Any] = {}

    def next_of(key: int) -> Iterable[int]:
        value = by_id[key]
        children = list(value.values()) if isinstance(value, dict) else value
        reference = value.get("$ref") if isinstance(value, dict) else None
        if isinstance(reference, str):
            children.append(target(schema, reference))
        for child in children:
            if isinstance(child, (dict, list)):
                by_id[id(child)] = child
                yield id(child)

    if isinstance(schema, (dict, list)):
        by_id[id(schema)] = schema
        if _longest_way([id(schema)], next_of) > MAX_CONTAINERS:
            raise TooDeep(f"its references lead through more than {MAX_CONTAINERS} objects and lists in a row")


def check_rules_depth(source: str) -> None:
    """Raises TooDeep for a Lark grammar whose rules lead through more than MAX_RULES rules, or one of whose schemas
    (``%json {...}``) too deep. Brackets llguidance counts itself.
    """
    bare = _STRING.sub(lambda match: " " * len(match.group()), source)
    for match in _SCHEMA.finditer(bare):
        try:
            schema, _ = _decoder.raw_decode(source, match.end())
        except (ValueError, RecursionError):
            raise TooDeep("what stands right behind %json must be a schema, and not nested too deeply") from None
        check_schema_depth(schema)
    found = list(_DEFINITION.finditer(bare))
    ends = [match.start() for match in found[1:]] + [len(bare)]
    bodies: dict[str, set[str]] = {}
    for match, end in zip(found, ends, strict=True):
        bodies.setdefault(match.group(1), set()).update(_NAME.findall(bare, match.end(), end))
    if _longest_way(list(bodies), lambda name: bodies[name] & bodies.keys()) > MAX_RULES:
        raise TooDeep(f"its rules lead through more than {MAX_RULES} of them in a row")


def target(root: object, reference: str) -> object:
    """What ``#/a/b`` points to in a schema; None for anything else."""
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            found = found.get(part) if isinstance(found, dict) else None
    return found


def _longest_way(starts: list, next_of: Callable[[Any], Iterable[Any]]) -> int:
    """Nodes on the longest way from any of ``starts``; a ring (strongly connected component) counts with all its nodes.

    Tarjan's algorithm (1972) without recursion: components come out in reverse order of the ways between them.
    """
    order: dict[Any, int] = {}  # when a node was met
    low: dict[Any, int] = {}  # the earliest node of the stack that it leads back to
    way: dict[Any, int] = {}  # of nodes whose component is complete
    stack: list[Any] = []
    longest = 0
    for start in starts:
        if start in order:
            continue
        todo = [(start, _enter(start, order, low, stack, next_of))]
        while todo:
            node, children = todo[-1]
            child = next(children, None)
            if child is None:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[node])
                if low[node] == order[node]:
                    longest = max(longest, _complete(node, stack, way, next_of))
            elif child not in order:
                todo.append((child, _enter(child, order, low, stack, next_of)))
            elif child not in way:
                low[node] = min(low[node], order[child])
    return longest


def _enter(node: Any, order: dict, low: dict, stack: list, next_of: Callable[[Any], Iterable[Any]]) -> Iterator:
    order[node] = low[node] = len(order)
    stack.append(node)
    return iter(next_of(node))


def _complete(first: Any, stack: list, way: dict, next_of: Callable[[Any], Iterable[Any]]) -> int:
    """Take the component that began with ``first`` from the stack; its longest way."""
    members = [stack.pop()]
    while members[-1] != first:
        members.append(stack.pop())
    inside = set(members)
    behind = max((way[child] for node in members for child in next_of(node) if child not in inside), default=0)
    for node in members:
        way[node] = len(members) + behind
    return len(members) + behind
