"""The driver is woken beside the imports, and a machine without one does not mind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyengine import cuda_driver


class FakeLibrary:
    def __init__(self, called: list[int]):
        self.cuInit = called.append


def test_the_driver_is_initialised(monkeypatch):
    called, names = [], []
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: names.append(name) or FakeLibrary(called))
    cuda_driver.wake().join(5)
    assert (names, called) == (["libcuda.so.1"], [0])


@pytest.mark.parametrize("error", [OSError("no such file"), AttributeError("cuInit")])
def test_no_driver_is_no_error(error, monkeypatch, capfd):
    def fail(name):
        raise error

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", fail)
    cuda_driver.wake().join(5)
    assert capfd.readouterr().err == ""


def test_the_engine_process_imports_torch_only_once_it_runs():
    code = "import sys, pyengine.engine_proc; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
