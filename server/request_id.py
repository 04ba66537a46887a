"""The name of a request in logs and answers: the client's own ``X-Request-Id`` if it is a sane one, else a new one."""

from __future__ import annotations

import re
import secrets

HEADER = "X-Request-Id"
ENVIRON_KEY = "pyengine.request_id"
MAX_CHARS = 128
_SANE = re.compile(rf"[\x21-\x7e](?:[\x20-\x7e]{{0,{MAX_CHARS - 2}}}[\x21-\x7e])?")


def request_id(given: str | None) -> str:
    """``given`` when it is printable ASCII of at most 128 characters."""
    return given if given is not None and _SANE.fullmatch(given) else f"req-{secrets.token_hex(16)}"
