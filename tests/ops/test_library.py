"""Loading the extension: where it is looked for, and the one-line errors when it is missing or does not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyengine
from pyengine import ops
from pyengine.errors import BuildError
from pyengine.ops import library

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1", "2.13.0+cpu", "2.13.0a0+git1234"])
def test_torch_in_range(version):
    library.check_torch(version)


@pytest.mark.parametrize("version", ["2.10.1", "2.9.0+cu128", "2.14.0", "3.0.0"])
def test_torch_out_of_range(version):
    with pytest.raises(
        BuildError,
        match=rf"torch {version.replace('+', '.')} is outside pyengine's range; run: pip install 'torch>=2.11,<2.14'",
    ):
        library.check_torch(version)


def test_extension_is_found_beside_the_package_then_on_the_path(tmp_path):
    shadow, installed = tmp_path / "clone" / "pyengine", tmp_path / "site" / "pyengine"
    shadow.mkdir(parents=True)
    installed.mkdir(parents=True)
    path = [str(shadow.parent), str(tmp_path / "nowhere"), str(installed.parent)]
    with pytest.raises(BuildError, match=r"run: pip install \."):
        library.find_extension(shadow, path)
    (installed / "_C.so").touch()
    assert library.find_extension(shadow, path) == installed / "_C.so"
    (shadow / "_C.so").touch()
    assert library.find_extension(shadow, path) == shadow / "_C.so"


def test_build_of_another_version_or_schema_is_refused(tmp_path):
    good = library.BuildInfo(pyengine.__version__, "0123456789ab", None)
    library.check_build(good, tmp_path / "_C.so", tmp_path / "absent.cpp")
    with pytest.raises(BuildError, match=r"_C\.so is of pyengine 0\.0\.1, this package of .*; run: pip install"):
        library.check_build(
            library.BuildInfo("0.0.1", "0123456789ab", None), tmp_path / "_C.so", tmp_path / "absent.cpp"
        )
    (tmp_path / "schema.cpp").write_text("other schemas")
    with pytest.raises(BuildError, match=r"was built from other sources than .*; run: pip install"):
        library.check_build(good, tmp_path / "_C.so", tmp_path / "schema.cpp")


def test_the_loaded_build_is_of_this_package():
    assert ops.BUILD_INFO.version == pyengine.__version__
    assert ops.has_cuda_kernels() == (ops.BUILD_INFO.cuda is not None)


def import_ops_from(folder: Path) -> subprocess.CompletedProcess[str]:
    """``import pyengine.ops`` in a fresh interpreter that sees ``folder`` instead of this checkout."""
    return subprocess.run(
        [sys.executable, "-c", "import pyengine.ops"], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_a_broken_extension_is_one_line(tmp_path):
    shutil.copytree(
        Path(pyengine.__file__).parent, tmp_path / "pyengine", ignore=shutil.ignore_patterns("_C.so", "__pycache__")
    )
    (tmp_path / "pyengine" / "_C.so").write_bytes(b"not a library")
    last = import_ops_from(tmp_path).stderr.strip().splitlines()[-1]
    assert (
        last.startswith("pyengine.errors.BuildError: ")
        and "does not load with torch" in last
        and "run: pip install" in last
    )


def test_gpu_without_cuda_kernels_is_one_line(monkeypatch):
    monkeypatch.setattr(ops, "BUILD_INFO", library.BuildInfo("0.1.0", "0", None))
    with pytest.raises(
        BuildError, match=r"there is a GPU, but pyengine was built with CPU kernels only; .*or use --device cpu"
    ):
        ops.check_device("cuda")
    ops.check_device("cpu")
    monkeypatch.setattr(ops, "BUILD_INFO", library.BuildInfo("0.1.0", "0", "13.0"))
    ops.check_device(torch.device("cuda", 0))


def test_extension_needs_no_python_and_one_torch_library():
    """What makes one file fit every Python and torch in range: no Python symbol, torch only through its C shims."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    path = library.find_extension(Path(pyengine.__file__).parent, sys.path)
    symbols = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    assert not [name for name in names if name.startswith(("Py", "_Py"))]
    mangled = [name for name in names if name.startswith("_Z")]
    assert not [name for name in mangled if "c10" in name or "2at" in name], "a C++ symbol of torch"
    assert [name for name in names if name.startswith(("aoti_torch_", "torch_"))]


def test_dependency_range_is_written_once_everywhere():
    """pyproject.toml, the build and the run-time check name the same torch versions."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not in a source tree")
    requirement = "torch>={}.{},<{}.{}".format(*library.MIN_TORCH, *library.MAX_TORCH)
    assert f'"{requirement}"' in (ROOT / "pyproject.toml").read_text()
    assert f'"{requirement}"' in (ROOT / "build_backend" / "environment.py").read_text()
