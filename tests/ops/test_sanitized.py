"""The selection that runs under compute-sanitizer names tests that exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_selected_test_is_there():
    selection = (ROOT / "tests/gpu/sanitized.txt").read_text().splitlines()
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *selection]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(line for line in done.stdout.splitlines() if "::" in line) == sorted(selection)
