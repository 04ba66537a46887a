"""What the build decides from what it finds: which torch, which kernels, which packages, and the one-line refusals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "build_backend" / "environment.py"


@pytest.fixture
def environment(monkeypatch):
    spec = importlib.util.spec_from_file_location("build_environment_under_test", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses looks its module up
    spec.loader.exec_module(module)
    return module


def site_with_torch(folder: Path, version: str, cuda: str | None) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(
        "from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n"
        f"__version__ = '{version}'\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
        "git_version = 'abc'\nhip: Optional[str] = None\n"
    )
    return folder


def machine(environment, monkeypatch, nvcc=None, gpu=False):
    found = None if nvcc is None else environment.Nvcc(Path("/opt/cuda/bin/nvcc"), nvcc)
    monkeypatch.setattr(
        environment, "find_nvcc", lambda cuda: found if found and found.version[0] == int(cuda.split(".")[0]) else None
    )
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: gpu)


def torch_of(environment, version="2.11.0+cu130", cuda="13.0"):
    return environment.Torch(Path("/site/torch"), version, cuda)


def test_torch_is_read_as_text(environment, tmp_path):
    site = site_with_torch(tmp_path / "a", "2.11.0+cu130", "13.0")
    found = environment.torch_in([tmp_path / "nowhere", site])
    assert (found.version, found.cuda, found.folder, found.in_range) == ("2.11.0+cu130", "13.0", site / "torch", True)
    assert environment.torch_in([site_with_torch(tmp_path / "b", "2.13.0+cpu", None)]).cuda is None
    assert environment.torch_in([tmp_path]) is None


@pytest.mark.parametrize(
    ("version", "expected"), [("2.10.2", False), ("2.11.0a0", True), ("2.13.9", True), ("2.14.0", False)]
)
def test_range(environment, version, expected):
    assert torch_of(environment, version).in_range is expected


def test_the_target_environments_torch_wins_over_the_isolated_one(environment, monkeypatch, tmp_path):
    target = site_with_torch(tmp_path / "target", "2.11.0+cu130", "13.0")
    isolated = site_with_torch(tmp_path / "isolated", "2.13.0+cpu", None)
    monkeypatch.setattr(environment, "target_site_packages", lambda: [target])
    monkeypatch.setattr(environment.sys, "path", [str(isolated)])
    assert environment.build_torch().version == "2.11.0+cu130"
    monkeypatch.setattr(environment, "target_site_packages", list)
    assert environment.build_torch().version == "2.13.0+cpu"


def test_a_target_torch_out_of_range_is_not_built_for(environment, monkeypatch, tmp_path):
    old = site_with_torch(tmp_path / "target", "2.4.1", None)
    monkeypatch.setattr(environment, "target_site_packages", lambda: [old])
    monkeypatch.setattr(environment.sys, "path", [str(old)])
    assert environment.target_torch() is None
    with pytest.raises(
        environment.BuildRefusal,
        match=r"torch 2\.4\.1 in .* is outside the range; run: pip install 'torch>=2.11,<2.14'",
    ):
        environment.build_torch()
    monkeypatch.setattr(environment.sys, "path", [])
    with pytest.raises(environment.BuildRefusal, match="no torch found to build against"):
        environment.build_torch()


def test_plan(environment, monkeypatch):
    cpu_torch, cuda_torch = torch_of(environment, "2.13.0+cpu", None), torch_of(environment)
    machine(environment, monkeypatch, nvcc=(13, 0), gpu=True)
    assert environment.plan_cuda(cuda_torch).cuda
    assert "nvcc 13.0" in environment.plan_cuda(cuda_torch).reason
    assert not environment.plan_cuda(cpu_torch).cuda  # a GPU that this torch cannot use
    assert not environment.plan_cuda(cuda_torch, "off").cuda
    machine(environment, monkeypatch)
    assert environment.plan_cuda(cuda_torch).reason.endswith("neither a GPU nor nvcc 13.x")


def test_never_cpu_kernels_in_silence(environment, monkeypatch):
    """CUDA torch, a GPU, no nvcc of its major version: refused with what to do."""
    machine(environment, monkeypatch, nvcc=(12, 8), gpu=True)
    with pytest.raises(
        environment.BuildRefusal,
        match=r"install the CUDA toolkit 13\.0 \(or: pip install nvidia-cuda-nvcc==13.*-C cuda=off",
    ):
        environment.plan_cuda(torch_of(environment))
    machine(environment, monkeypatch, gpu=True)
    with pytest.raises(environment.BuildRefusal) as refusal:
        environment.plan_cuda(torch_of(environment, "2.11.0+cu128", "12.8"))
    assert "pip install nvidia" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_wishes(environment, monkeypatch):
    machine(environment, monkeypatch)
    for torch, text in (
        (torch_of(environment), "needs nvcc 13.x"),
        (torch_of(environment, "2.13.0+cpu", None), "cannot use a GPU"),
    ):
        with pytest.raises(environment.BuildRefusal, match=text):
            environment.plan_cuda(torch, "on")
    with pytest.raises(environment.BuildRefusal, match="-C cuda=maybe: expected auto, on or off"):
        environment.plan_cuda(torch_of(environment), "maybe")


def test_nvcc_of_pips_packages_is_found(environment, monkeypatch, tmp_path):
    nvcc = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(environment.sys, "path", [str(tmp_path)])
    monkeypatch.setattr(environment, "target_site_packages", list)
    monkeypatch.setattr(environment.os, "environ", {})
    real_glob = environment.glob.glob
    monkeypatch.setattr(
        environment.glob, "glob", lambda pattern: [] if pattern.startswith("/usr/local") else real_glob(pattern)
    )
    real_version = environment._nvcc_version
    monkeypatch.setattr(
        environment, "_nvcc_version", lambda path: None if path.startswith("/usr/local") else real_version(path)
    )
    assert environment.find_nvcc("13.0") == environment.Nvcc(nvcc, (13, 0))
    assert environment.find_nvcc("12.8") is None


def test_compiler_packages(environment):
    assert (
        "nvidia-cuda-nvcc==13.0.*" in environment.compiler_packages("13.0")
        and len(environment.compiler_packages("13.0")) == 5
    )
    assert environment.compiler_packages("12.8") == []  # those packages hold no nvcc
