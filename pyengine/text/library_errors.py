"""What a tokenizer library says of a broken file, as one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyengine.errors import PyengineError

MAX_REASON = 300  # characters of the library's own words


@contextmanager
def library_errors(error_type: type[PyengineError], text: str) -> Iterator[None]:
    """Turn whatever a library raises (panics of Rust included, which are BaseExceptions) into one of our errors."""
    try:
        yield
    except PyengineError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())  # one line of bounded length, whatever was in the file
        raise error_type(f"{text}: {reason[:MAX_REASON]}") from None
