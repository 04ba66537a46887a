"""The engine as a child process: started with ``subprocess`` (never fork), watched, replaced when it dies.

The socket lives in a folder of mode 0700, so no other user can speak to the engine. The configuration goes in through
standard input, so it is not in the process list.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pyengine.config import EngineConfig
from pyengine.process_age import process_age_s


class EngineProcess:
    """One child at a time; each start gets a fresh socket path, so that nothing of a dead engine's socket is ever
    read. ``command`` is what to run, short of the address of the socket.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "pyengine.engine_proc")) -> None:
        self._command = command
        self.folder = Path(tempfile.mkdtemp(prefix="pyengine-"))  # mkdtemp makes it 0700
        self._num_starts = 0
        self._child: subprocess.Popen | None = None
        self.started_s = 0.0  # age of this process when it started the first
        self.is_waiting = False  # a child is there that does not know yet what to run

    @property
    def address(self) -> str:
        return f"ipc://{self.folder}/engine-{self._num_starts}.sock"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start a child; it imports what it needs while its configuration is still being worked out."""
        self.started_s = self.started_s or process_age_s()
        self._num_starts += 1
        self._child = subprocess.Popen([*self._command, self.address], stdin=subprocess.PIPE)
        self.is_waiting = True

    def configure(self, config: EngineConfig) -> None:
        """Tell the child what to run."""
        self.is_waiting = False
        try:
            self._child.stdin.write(msgspec.json.encode(config))
            self._child.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; ``wait`` tells

    def wait(self) -> int:
        """Block this greenlet until the child ends; its exit code (negative: the signal)."""
        return self._child.wait()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child: politely, then not."""
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    def remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
