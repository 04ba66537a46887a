"""Fixtures that every group may use: the devices and element types to test, and a seeded generator."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# The benchmarks' own tests import `bench`, which is not installed. Last, so that the installed pyengine stays first.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``device`` runs a test on cpu and cuda, ``dtype`` on the element types each of them supports."""
    marked = {name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")}
    names = [name for name in ("device", "dtype") if name in metafunc.fixturenames and name not in marked]
    if names == ["device", "dtype"]:
        cases = [("cpu", "bfloat16"), ("cpu", "float32"), ("cuda", "bfloat16"), ("cuda", "float16")]
        metafunc.parametrize(names, cases, indirect=True)
    elif names == ["device"]:
        metafunc.parametrize("device", ["cpu", "cuda"], indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """``cpu`` or ``cuda``; the latter skips without a GPU and fails where there is one but no CUDA kernels."""
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        from pyengine import ops

        ops.check_device("cuda")
    return request.param


@pytest.fixture
def dtype(request: pytest.FixtureRequest):
    import torch

    return getattr(torch, request.param)


@pytest.fixture(autouse=importlib.util.find_spec("torch") is not None)
def seeded(request: pytest.FixtureRequest) -> None:
    """torch's generators start from the same seed in every test of a group that uses torch."""
    if "/pure/" not in str(request.path):
        import torch

        torch.manual_seed(20261122)
