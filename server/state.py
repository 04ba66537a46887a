"""The server's life: starting, ready, draining; and whether the engine behind it is there right now."""

from __future__ import annotations

from pyengine.protocol import Progress, Ready


class ServerStopping(Exception):
    """What a stream that outlives the grace time ends with."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class ServerState:
    """Facts that the routes ask for. Changed by the launcher alone."""

    def __init__(self) -> None:
        self.ready: Ready | None = None  # set while an engine serves
        self.draining = False
        self.progress = Progress("starting the engine")

    @property
    def accepts(self) -> bool:
        return self.ready is not None and not self.draining

    def refusal(self) -> str:
        """Why a request cannot be taken now."""
        if self.draining:
            return "the server is shutting down"
        return f"the model is not ready yet: {self.progress.text} ({self.progress.fraction:.0%})"
