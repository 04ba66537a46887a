"""Starts ``python -m server`` as a user would, waits until it is ready, and stops it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m"
# The default model's own template has no place for tools and thinking; this one has.
TOOL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{{ tools | tojson if tools }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# <think> </think> #}"
)
START_TIMEOUT_S = 240  # the first start of a machine downloads the model


class RunningServer:
    """``with RunningServer("--flag", "value") as server``: ``server.url`` answers."""

    def __init__(self, *flags: str):
        self._flags = flags
        self.log_path = Path(tempfile.mkstemp(prefix="pyengine-test-", suffix=".log")[1])
        self.process: subprocess.Popen | None = None
        self.url = ""

    def __enter__(self) -> RunningServer:
        try:
            self.start()
        except BaseException:
            self.stop()  # nobody else would
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.log_path.unlink(missing_ok=True)

    def start(self, wait: bool = True) -> None:
        command = [
            sys.executable,
            "-m",
            "server",
            "--port",
            "0",
            "--max-num-seqs",
            "32",
            "--kv-cache-memory",
            "512MiB",
            *self._flags,
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log_path.open("wb"), stdout=subprocess.DEVNULL)
        if wait:
            self.wait_until(lambda: "OpenAI's API at" in self.log(), START_TIMEOUT_S, "ready")
            self.url = re.search(r"API at (http://\S+)/v1", self.log()).group(1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_until(self, condition, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the server ended with {self.process.returncode} before it was {what}:\n{self.log()}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"not {what} within {timeout_s} s:\n{self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def request(
        self, path: str, body: bytes | dict | None = None, headers: dict | None = None, method: str | None = None
    ) -> tuple[int, bytes, dict]:
        """Status, body, headers; errors included."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port

    def metrics_text(self) -> str:
        return self.request("/metrics")[1].decode()

    def metric(self, name: str) -> float:
        """Sum of a metric's samples over its labels."""
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in self.metrics_text().splitlines()
            if re.match(re.escape(name) + r"[{ ]", line)
        ]
        assert values, f"no metric {name}"
        return sum(values)

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if b"engine_proc" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        raise AssertionError("the server has no engine process")
