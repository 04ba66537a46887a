"""Who may ask: API keys, Host names, and the web origins whose pages may use the server.

All of it is decided before a route runs, by the endpoint that the router matched and never by the text of a path, and
everything that is not listed as open is closed: a route added tomorrow needs the key too, and so does a path that does
not exist. Without ``--api-key`` everybody who reaches the port may use it, so the default address is loopback; there,
Host is checked against a list, because a web page can point a name of its own at 127.0.0.1 and then speak to us as the
same origin (DNS rebinding), and a page of any other origin is refused unless it was allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from flask import Flask, Response, g, request

from pyengine.errors import ConfigError, RequestError
from pyengine.text.validation import PreparedRequest
from server import dashboard, request_id
from server.config import ServerConfig

OPEN_ENDPOINTS = frozenset(("ops.health", "ops.ready", "ops.version"))
# What an operator's browser opens, too: there the key may be the password of HTTP's basic authentication (RFC 7617).
BROWSER_ENDPOINTS = dashboard.ENDPOINTS | {"ops.metrics"}
PREFLIGHT_MAX_AGE_S = 600
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")


class ApiKeys:
    """The keys, kept as digests. ``find`` takes equally long whichever key is tried, right or wrong."""

    def __init__(self, keys: Sequence[str]):
        self._digests = tuple(dict.fromkeys(_digest(key) for key in keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, given: str) -> bytes | None:
        """The digest of the key that ``given`` is, or None."""
        digest, found = _digest(given), None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known
        return found


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def all_keys(config: ServerConfig) -> list[str]:
    """Keys given as options and in the key file. Raises ConfigError, which never shows a key."""
    keys = list(config.api_key)
    if config.api_key_file is not None:
        keys += _read_key_file(Path(config.api_key_file))
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ConfigError("an API key must be 1 to 512 printable ASCII characters without spaces")
    return keys


def _read_key_file(path: Path) -> list[str]:
    """One key a line; empty lines and those that begin with # are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {path}: the file has no key")
    return keys


class HostNames:
    """Which names a client may call the server by; all of them when it is open to the network and none were listed."""

    def __init__(self, bound_to: str, allowed: Sequence[str]):
        self._names = frozenset(name.lower() for name in (*allowed, bound_to, "localhost"))
        self._loopback = _is_loopback(bound_to)
        self._checked = self._loopback or bool(allowed)

    def allow(self, host: str | None) -> bool:
        """``host`` as in the header, with or without a port; a client without one is no browser."""
        if not self._checked or host is None:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().strip("[]").removesuffix(".")
        return name in self._names or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Origins:
    """Web origins whose pages may use the server (``*``: all)."""

    def __init__(self, allowed: Sequence[str]):
        self._allowed = frozenset(origin.lower().rstrip("/") for origin in allowed)

    def allow(self, origin: str) -> bool:
        return "*" in self._allowed or origin.lower() in self._allowed


class Access:
    """The hooks around every route."""

    def __init__(self, config: ServerConfig):
        self._keys = ApiKeys(all_keys(config))
        self._hosts = HostNames(config.host, config.allowed_host)
        self._origins = Origins(config.allowed_origin)
        self.open_endpoints = OPEN_ENDPOINTS | (BROWSER_ENDPOINTS if config.public_metrics else frozenset())
        self._salt_per_key = config.prefix_cache_per_key

    @property
    def needs_keys(self) -> bool:
        return bool(self._keys)

    def install(self, app: Flask) -> None:
        app.before_request(self._before)
        app.after_request(self._after)

    def _before(self) -> Response | None:
        """An answer instead of the route's (to a preflight), None to go on; raises RequestError with 401 or 403."""
        g.cache_salt, g.origin = "", None
        self._check_host()
        self._check_origin()
        if g.origin and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._preflight()
        if self._keys and request.endpoint not in self.open_endpoints:
            self._check_key()
        return None

    def _check_host(self) -> None:
        host = request.environ.get("HTTP_HOST")
        if not self._hosts.allow(host):
            text = f"this server is not called {host[:100]!r} (--allowed-host adds a name)"
            raise RequestError(text, status=403, code="host_not_allowed")

    def _check_origin(self) -> None:
        """A page of a foreign origin could not read the answer; it must not cause the work either."""
        origin = request.headers.get("Origin")
        if origin is None or origin.lower() == f"http://{request.environ.get('HTTP_HOST', '')}".lower():
            return
        if not self._origins.allow(origin):
            text = f"web pages of {origin[:100]!r} may not use this server (--allowed-origin allows them)"
            raise RequestError(text, status=403, code="origin_not_allowed")
        g.origin = origin

    def _check_key(self) -> None:
        given = _given_key()
        if given is None:
            text = "an API key is needed: send it as 'Authorization: Bearer KEY'"
            raise RequestError(text, status=401, code="missing_api_key")
        digest = self._keys.find(given)
        if digest is None:
            raise RequestError("this API key is not known here", status=401, code="invalid_api_key")
        if self._salt_per_key:
            g.cache_salt = sha256(b"pyengine cache salt" + digest).hexdigest()[:32]

    def _preflight(self) -> Response:
        response = Response(status=204)
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = wanted if _HEADER_NAMES.fullmatch(wanted) else ""
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_MAX_AGE_S)
        return response

    def _after(self, response: Response) -> Response:
        origin = g.get("origin")
        if origin:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = f"{request_id.HEADER}, Retry-After, X-Ignored-Fields"
            response.headers.add("Vary", "Origin")
        if response.status_code == 401 and request.endpoint in BROWSER_ENDPOINTS:
            response.headers["WWW-Authenticate"] = 'Basic realm="pyengine", charset="UTF-8"'
        return response


def _given_key() -> str | None:
    """The key as OpenAI's clients send it (a bearer token), as Anthropic's do (x-api-key), or as a browser does."""
    if request.endpoint in BROWSER_ENDPOINTS and request.authorization and request.authorization.type == "basic":
        return request.authorization.password
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("X-Api-Key")


def salted(prepared: PreparedRequest) -> PreparedRequest:
    """``prepared`` with its cached prefixes apart from those of other API keys: none can time another's cache."""
    if not g.cache_salt:
        return prepared
    return replace(prepared, cache_salt=f"{g.cache_salt}:{prepared.cache_salt}")


def notes(config: ServerConfig) -> list[str]:
    """Warnings for the operator."""
    if _is_loopback(config.host) or all_keys(config):
        return []
    return [f"{config.host} may be reached from the network and there is no --api-key: anybody there can use the model"]
