"""Options of the HTTP side. As in ``pyengine.config``, the fields are the command-line options."""

from __future__ import annotations

from dataclasses import dataclass

from pyengine.config import option
from pyengine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where to listen, what to call the model, how to stop."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 opens the server to the network")
    port: int = option(8000, "TCP port; 0 takes a free one and prints it")
    served_model_name: str | None = option(None, "name that clients use in 'model'; default: the model as given")
    chat_template: str | None = option(None, "file with a Jinja chat template, instead of the checkpoint's own")
    shutdown_timeout: float = option(30.0, "seconds that running requests may take to finish after SIGTERM")
    keep_alive_interval: float = option(
        15.0, "seconds between comment lines on a stream that has nothing to say yet; 0: none"
    )
    max_body_size: int = option(8 << 20, "bytes of a request body at most")
    access_log: bool = option(False, "print a line for every HTTP request")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be in [0, 65535], got {self.port}")
        for name in ("shutdown_timeout", "keep_alive_interval"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} must be a number of seconds, got {getattr(self, name)}")
        if self.max_body_size < 1:
            raise ConfigError(f"--max-body-size must be at least 1 byte, got {self.max_body_size}")
