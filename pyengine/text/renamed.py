"""Errors of a translated request under the names that its client used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyengine.errors import RequestError


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """A RequestError about a field of ``names`` (ours to theirs) names theirs."""
    try:
        yield
    except RequestError as error:
        theirs = names.get(error.param or "")
        if theirs is None:
            raise
        message = error.message.replace(error.param, theirs, 1)
        raise RequestError(message, param=theirs, status=error.status, code=error.code) from None
