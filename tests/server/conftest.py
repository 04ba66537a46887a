"""A real server on loopback with the default model, driven by real clients. One for the whole session; tests that
break theirs start their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running_server import RunningServer


@pytest.fixture(scope="session")
def server():
    with RunningServer() as running:
        yield running


@pytest.fixture
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)
