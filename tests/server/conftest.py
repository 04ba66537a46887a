"""A real server on loopback with the default model, driven by real clients. One for the whole session; tests that
break theirs start their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running_server import TOOL_TEMPLATE, RunningServer


@pytest.fixture(scope="session")
def server():
    with RunningServer() as running:
        yield running


@pytest.fixture(scope="session")
def strict_server():
    """A small one with everything switched on: two keys, two rows, and room for four in the queue."""
    keys = ("sk-first", "sk-second")
    flags = ["--api-key", keys[0], "--api-key", keys[1], "--public-metrics", "--access-log", "--max-num-seqs", "2"]
    with RunningServer(*flags, "--max-queued-requests", "4", "--max-queued-tokens", "2000") as running:
        running.keys = keys
        yield running


@pytest.fixture(scope="session")
def tool_server(tmp_path_factory):
    """One whose chat template offers tools, for clients with the key ``tool_server.key``."""
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TOOL_TEMPLATE)
    with RunningServer("--chat-template", str(template), "--api-key", "sk-tools") as running:
        running.key = "sk-tools"
        yield running


@pytest.fixture
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)
