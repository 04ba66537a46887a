"""Errors of a translated request under the names that its client used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyengine.errors import RequestError


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """A RequestError about a field of ``names`` names theirs: patterns of paths that begin like ours to what these are
    called there. The first that fits counts; what follows it stays, as the rest of a path does.
    """
    try:
        yield
    except RequestError as error:
        param = _renamed(error.param or "", names)
        if param == (error.param or ""):
            raise
        message = _renamed(error.message, names)
        raise RequestError(message, param=param, status=error.status, code=error.code) from None


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        found = re.match(rf"{ours}(?![A-Za-z0-9_])", text)
        if found is not None:
            return found.expand(theirs) + text[found.end() :]
    return text
