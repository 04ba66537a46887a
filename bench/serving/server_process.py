"""``python -m server`` as a child, for benchmarks: on a free port, timed until it is ready, stopped at the end."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.01


class ServerProcess:
    """``with ServerProcess("--model ...") as server``: ready at ``server.url``, after ``server.ready_s`` seconds."""

    def __init__(self, flags: str, start_timeout_s: float = 900.0, quiet: bool = False):
        self.flags = shlex.split(flags)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_s = 0.0
        self._start_timeout_s = start_timeout_s
        self._quiet = quiet
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [sys.executable, "-m", "server", "--port", str(self.port), *self.flags]
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL if self._quiet else None)

    def wait_until_ready(self) -> None:
        """Raises SystemExit when the server ends or takes too long: there is nothing to measure then."""
        while not self._answers("/ready"):
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with {self._process.returncode} before it was ready")
            if time.monotonic() - self.started_s > self._start_timeout_s:
                raise SystemExit(f"the server was not ready within {self._start_timeout_s:g} s")
            time.sleep(POLL_S)
        self.ready_s = time.monotonic() - self.started_s

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _answers(self, path: str) -> bool:
        try:
            get(self.url + path)
        except (OSError, urllib.error.HTTPError):
            return False
        return True


def get(url: str, api_key: str | None = None) -> dict | str:
    """What a GET answers, JSON as an object. Raises OSError, urllib.error.HTTPError among them."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
        body = response.read()
        return json.loads(body) if response.headers.get_content_type() == "application/json" else body.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
