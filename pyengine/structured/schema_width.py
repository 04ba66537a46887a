"""How many items a JSON schema needs at its widest place, before any answer has got there.

llguidance keeps, for each character of an answer, a row of items: what may still come. Its length is bounded, and a
schema that needs more somewhere fails only where an answer arrives, so this walks all places that an answer can reach:

    place       the alternatives of the schema that may all hold at one point of an answer
    steps       into a property, any other property, the items of a list: the alternatives there together
    items       4 for each optional property that may come next, few for anything else (measured with llguidance 1)

Alternatives whose first property has different constants are told apart by it, as the parser does. Other differences
further ahead are not seen, so a union of objects may count for more than it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

from pyengine.structured.depth import target

MAX_VISITS = 100_000
Schema = dict[str, Any]
Conjunction = tuple[Schema, ...]  # schemas that hold together; compared by identity
_UNIONS = ("anyOf", "oneOf")
# What tells more about an answer than that it is some scalar; a schema without any is the same as any other.
_SHAPES = frozenset(("properties", "patternProperties", "additionalProperties", "required", "items", "prefixItems"))


class TooWide(ValueError):
    """Says where, and how much it would take."""


def check_width(schema: object, limit: int) -> None:
    """Raises TooWide where a row of more than ``limit`` items could be needed, or where that cannot be found out."""
    if not isinstance(schema, dict):
        return
    try:
        _Walk(schema, limit).run()
    except RecursionError:
        raise TooWide("its references lead too deep to follow") from None


class _Walk:
    def __init__(self, root: Schema, limit: int):
        self._root = root
        self._limit = limit
        self._num_visits = 0
        self._flat: dict[tuple[int, ...], list[Conjunction]] = {}

    def run(self) -> None:
        if not self._fits_at_once():
            self._look_at_each_place()

    def _fits_at_once(self) -> bool:
        """Whether all alternatives of all places would fit into one: so it is with most schemas, and is seen soon."""
        seen: dict[tuple[int, ...], Conjunction] = {}
        todo: list[Conjunction] = [(self._root,)]
        while todo:
            new = {key: each for each in self._alternatives(todo.pop()) if (key := _key(each)) not in seen}
            seen |= new
            todo += [whole for each in new.values() for _, wholes in _steps("", [each]) for whole in wholes]
        return sum(map(_num_first, seen.values())) + sum(map(_num_later, seen.values())) <= self._limit

    def _look_at_each_place(self) -> None:
        seen: set[frozenset[tuple[int, ...]]] = set()
        todo: list[tuple[str, list[Conjunction]]] = [("$", [(self._root,)])]
        while todo:
            where, conjunctions = todo.pop()
            place = {_key(each): each for whole in conjunctions for each in self._alternatives(whole)}
            if frozenset(place) in seen:
                continue
            seen.add(frozenset(place))
            self._check(where, sum(map(_num_first, place.values())))
            for group in _told_apart(list(place.values())):
                self._check(where, sum(map(_num_later, group)))
                todo += _steps(where, group)

    def _check(self, where: str, num_items: int) -> None:
        if num_items > self._limit:
            raise TooWide(
                f"what may stand at {where[:80]} needs {num_items} items, 4 for each optional property of all its "
                f"alternatives; limit {self._limit}: make properties required, or its alternatives fewer"
            )

    def _visit(self, count: int = 1) -> None:
        self._num_visits += count
        if self._num_visits > MAX_VISITS:
            raise TooWide(f"its alternatives overlap in too many ways: more than {MAX_VISITS} to look at")

    def _alternatives(self, whole: Conjunction) -> list[Conjunction]:
        """A conjunction as alternatives that have neither unions nor references."""
        key = _key(whole)
        if key not in self._flat:
            options = [self._options(schema, frozenset()) for schema in whole]
            self._flat[key] = self._product(options)
        self._visit(len(self._flat[key]))
        return self._flat[key]

    def _options(self, schema: object, inside: frozenset[int]) -> list[Conjunction]:
        if not isinstance(schema, dict) or id(schema) in inside:
            return [()]
        self._visit()
        inside = inside | {id(schema)}
        factors: list[list[Conjunction]] = [[(schema,) if _SHAPES.intersection(schema) else ()]]
        if isinstance(schema.get("$ref"), str):
            factors.append(self._options(target(self._root, schema["$ref"]), inside))
        for key in _UNIONS:
            if isinstance(schema.get(key), list):
                factors.append([one for each in schema[key] for one in self._options(each, inside)])
        if isinstance(schema.get("allOf"), list):
            factors += [self._options(each, inside) for each in schema["allOf"]]
        return self._product(factors)

    def _product(self, factors: list[list[Conjunction]]) -> list[Conjunction]:
        found: list[Conjunction] = [()]
        for factor in factors:
            self._visit(len(found) * len(factor))
            found = [left + right for left, right in product(found, factor)]
        return found


def _key(whole: Conjunction) -> tuple[int, ...]:
    return tuple(id(schema) for schema in whole)


def _members(whole: Conjunction, key: str) -> Iterator[tuple[str, object]]:
    for schema in whole:
        if isinstance(schema.get(key), dict):
            yield from schema[key].items()


def _required(whole: Conjunction) -> set[str]:
    lists = (schema["required"] for schema in whole if isinstance(schema.get("required"), list))
    return {name for names in lists for name in names if isinstance(name, str)}


def _runs(whole: Conjunction) -> list[int]:
    """How many optional properties stand before, between and behind the required ones."""
    names, required = dict.fromkeys(name for name, _ in _members(whole, "properties")), _required(whole)
    runs = [0]
    for name in (*names, *(required - names.keys())):
        if name in required:
            runs.append(0)
        else:
            runs[-1] += 1
    return runs


def _num_first(whole: Conjunction) -> int:
    """Items of the row where one alternative begins."""
    if not whole:
        return 3
    runs, patterns = _runs(whole), sum(1 for _ in _members(whole, "patternProperties"))
    lists = 6 * any("items" in schema or "prefixItems" in schema for schema in whole)
    if len(runs) > 1:
        return 3 * runs[0] + 1 + lists
    return (4 * runs[0] + 7 if runs[0] or patterns else 1) + patterns + lists


def _num_later(whole: Conjunction) -> int:
    """Items of the longest row further on in one alternative, where a required property has been written."""
    if not whole:
        return 1
    is_open = not any(schema.get("additionalProperties") is False for schema in whole)
    patterns = sum(1 for _ in _members(whole, "patternProperties"))
    return max(2 * run + 4 for run in _runs(whole)) + patterns + 8 * is_open


def _told_apart(place: list[Conjunction]) -> list[list[Conjunction]]:
    """Groups of alternatives that an answer has decided between by the time it is inside of one."""
    objects, others = [], []
    for each in place:
        (objects if any(True for _ in _members(each, "properties")) else others).append(each)
    marks = [_mark(each) for each in objects]
    if None in marks or len({name for name, _ in marks}) > 1 or any(map(_loose, others)):
        return [place]
    groups: dict[str, list[Conjunction]] = {}
    for each, (_, value) in zip(objects, marks, strict=True):
        groups.setdefault(value, []).append(each)
    return [*groups.values(), others]


def _mark(whole: Conjunction) -> tuple[str, str] | None:
    """The first property and the constant that it must have; None where there is none."""
    name, value = next(_members(whole, "properties"))
    if name not in _required(whole) or not isinstance(value, dict):
        return None
    values = [value["const"]] if "const" in value else value.get("enum")
    return (name, json.dumps(values[0])) if isinstance(values, list) and len(values) == 1 else None


def _steps(where: str, group: list[Conjunction]) -> list[tuple[str, list[Conjunction]]]:
    """The places one level deeper that an answer can reach from any of ``group``, with their paths. What takes any
    name, or any item of a list, is also there where another alternative has one of its own.
    """
    own: dict[str, dict[int, Conjunction]] = {".*": {}, "[*]": {}}
    for i, whole in enumerate(group):
        prefixes = (schema.get("prefixItems") for schema in whole)
        lists = [(f"[{at}]", value) for each in prefixes if isinstance(each, list) for at, value in enumerate(each)]
        for step, value in [*((f".{name}", value) for name, value in _members(whole, "properties")), *lists]:
            wholes = own.setdefault(step, {})
            wholes[i] = wholes.get(i, ()) + ((value,) if isinstance(value, dict) else ())
    others = {
        ".": {i: every for i, whole in enumerate(group) if (every := _loose(whole))},
        "[": {i: every for i, whole in enumerate(group) if (every := _every_item(whole))},
    }
    return [
        (
            where + step,
            [*wholes.values(), *(each for i, every in others[step[0]].items() if i not in wholes for each in every)],
        )
        for step, wholes in own.items()
    ]


def _loose(whole: Conjunction) -> list[Conjunction]:
    """What an object may hold under names that it does not list."""
    values = [schema.get("additionalProperties") for schema in whole]
    values += [value for _, value in _members(whole, "patternProperties")]
    return [(value,) for value in values if isinstance(value, dict)]


def _every_item(whole: Conjunction) -> list[Conjunction]:
    """What a list may hold behind the items that it lists."""
    together = tuple(schema["items"] for schema in whole if isinstance(schema.get("items"), dict))
    return [together] if together else []
