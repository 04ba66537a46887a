"""Options of the HTTP side. As in ``pyengine.config``, the fields are the command-line options."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyengine.config import option
from pyengine.errors import ConfigError
from pyengine.sampling_params import MAX_LOGIT_BIAS, MAX_N, MAX_STOP_STRINGS
from pyengine.text.unknown_fields import POLICIES

# What the engine takes at most; a server may allow less.
_CAPS = {"max_n": MAX_N, "max_stops": MAX_STOP_STRINGS, "max_logit_bias": MAX_LOGIT_BIAS}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where to listen, who may ask, what to call the model, how to stop. A tuple is an option that may be repeated."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 opens the server to the network")
    port: int = option(8000, "TCP port; 0 takes a free one and prints it")
    api_workers: int = option(
        1, "processes that serve HTTP, on one port; more than one when the cores are there and one is not enough"
    )
    served_model_name: str | None = option(None, "name that clients use in 'model'; default: the model as given")
    reasoning: str = option(
        "auto",
        "auto: the thinking of models whose chat template knows it is a field of its own; none: it stays in the text",
        choices=("auto", "none"),
    )
    chat_template: str | None = option(None, "file with a Jinja chat template, instead of the checkpoint's own")
    shutdown_timeout: float = option(30.0, "seconds that running requests may take to finish after SIGTERM")
    keep_alive_interval: float = option(
        15.0, "seconds between comment lines on a stream that has nothing to say yet; 0: none"
    )
    unknown_fields: str = option(
        "error",
        "error: a request with a field that the API does not know is a 400 that names it; warn: such fields are "
        "ignored, and the header X-Ignored-Fields and a line in the log name them",
        choices=POLICIES,
    )
    max_body_size: int = option(8 << 20, "bytes of a request body at most")
    max_headers: int = option(64, "headers of a request at most")
    max_header_size: int = option(16 << 10, "bytes of a request's headers at most")
    max_prompts: int = option(1024, "prompts, or inputs to embed, of one request at most")
    max_sequences: int = option(1024, "answers that one request may ask for: its prompts times n")
    max_n: int = option(MAX_N, "answers to one prompt at most")
    max_stops: int = option(MAX_STOP_STRINGS, "stop strings of a request at most")
    max_logit_bias: int = option(MAX_LOGIT_BIAS, "entries of logit_bias at most")
    max_connections: int = option(
        2048,
        "open connections at most, of each API worker; the one that has been idle the longest makes room for a new one",
    )
    idle_timeout: float = option(75.0, "seconds that a connection may be idle between two requests")
    client_timeout: float = option(
        30.0,
        "seconds to wait for a client in the middle of something: to finish its headers or body (longer for a large "
        "one), or to take in what it is sent; then its connection is closed",
    )
    access_log: bool = option(False, "print a line for every HTTP request")
    api_key: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata={
            "help": "key that requests must carry as a bearer token; may be repeated. Other users of this machine see "
            "it in the process list: the environment variable PYENGINE_API_KEY or a file hides it"
        },
    )
    api_key_file: str | None = option(None, "file with one API key a line; lines that begin with # are skipped")
    public_metrics: bool = option(False, "serve /metrics and /dashboard without an API key")
    prefix_cache_per_key: bool = option(
        True, "keep cached prefixes apart by API key, so that none can learn from timing what another asked"
    )
    allowed_host: tuple[str, ...] = option(
        (), "further name of this server in Host headers, checked when listening on loopback; may be repeated"
    )
    allowed_origin: tuple[str, ...] = option(
        (), "origin whose web pages may use the server, such as https://chat.example.org, or *; may be repeated"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be in [0, 65535], got {self.port}")
        for name in ("shutdown_timeout", "keep_alive_interval"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} must be a number of seconds, got {getattr(self, name)}")
        for name in ("idle_timeout", "client_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} must be more than 0 seconds, got {getattr(self, name)}")
        positive = ("api_workers", "max_body_size", "max_connections", "max_headers", "max_header_size")
        for name in (*positive, "max_prompts", "max_sequences", *_CAPS):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name, cap in _CAPS.items():
            if getattr(self, name) > cap:
                raise ConfigError(f"--{name.replace('_', '-')} may be at most {cap}, got {getattr(self, name)}")
