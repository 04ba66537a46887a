"""What the operator sees: a progress bar while the engine starts, one summary when it is ready, a line when something
happens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from pyengine import __version__
from pyengine.config import format_bytes

if TYPE_CHECKING:
    from pyengine.protocol import Ready
    from server.config import ServerConfig


def say(text: str) -> None:
    print(f"pyengine: {text}", file=sys.stderr, flush=True)


class ProgressBar:
    """One bar, renewed whenever the text changes; silent when standard error is no terminal, but for a line per
    phase.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._text = ""

    def show(self, text: str, fraction: float) -> None:
        if text != self._text:
            self.close()
            self._text = text
            if not sys.stderr.isatty():
                say(text)
                return
            self._bar = tqdm(
                total=100,
                desc=text,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
                file=sys.stderr,
                leave=False,
            )
        if self._bar is not None:
            self._bar.n = round(100 * min(fraction, 1.0))
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Served(Protocol):
    """What a service says of itself."""

    model_name: str
    notes: Sequence[str]


def print_summary(ready: Ready, config: ServerConfig, service: Served, port: int, began_s: float) -> None:
    """Model, device, memory ledger, seconds per phase, where to reach it."""
    lines = [f"pyengine {__version__}: {service.model_name} ({ready.model_name}, {ready.dtype}) on {ready.device}"]
    width = max(map(len, ready.memory))
    lines += [f"  {name:<{width}}  {format_bytes(size):>10}" for name, size in ready.memory.items()]
    slots = ready.num_blocks * ready.block_size
    lines.append(
        f"  {ready.num_blocks} KV blocks of {ready.block_size} tokens in {ready.kv_cache_dtype}: "
        f"{slots / ready.max_model_len:.1f} sequences of {ready.max_model_len} tokens; "
        f"steps of up to {ready.max_num_seqs} sequences, {ready.max_num_batched_tokens} tokens"
    )
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in ready.startup_s.items())
    lines.append(f"  ready in {time.monotonic() - began_s:.1f} s ({phases})")
    lines += [f"  note: {note}" for note in (*ready.notes, *service.notes)]
    lines.append(f"  OpenAI's API at http://{_shown_host(config.host)}:{port}/v1")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
