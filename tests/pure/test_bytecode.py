"""Bytecode of packages that came without: kept in a private folder, found by the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pyengine import bytecode
folder = bytecode.keep("packaged")
import packaged
print(folder, sys.dont_write_bytecode)
"""


def run(tmp_path: Path, script: str = SCRIPT, **environment: str) -> str:
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    fixed = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**inherited, **fixed, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path) -> Path:
    (tmp_path / "packaged.py").write_text("value = 1\n")
    return tmp_path / "cache" / "pyengine" / "bytecode"


def test_bytecode_is_kept_apart_from_the_sources(tmp_path, package):
    assert run(tmp_path) == f"{package} False"
    [kept] = package.rglob("packaged.*.pyc")
    assert not list(tmp_path.glob("__pycache__"))
    assert package.stat().st_mode & 0o777 == 0o700
    written_ns = kept.stat().st_mtime_ns
    run(tmp_path)
    assert kept.stat().st_mtime_ns == written_ns  # found, not compiled again


def test_a_changed_source_is_compiled_again(tmp_path, package):
    run(tmp_path)
    (tmp_path / "packaged.py").write_text("value = 12345\n")
    assert run(tmp_path, SCRIPT + "print(packaged.value)").endswith("12345")


def test_packages_with_bytecode_are_left_alone(tmp_path, package):
    run(tmp_path, "import packaged", PYTHONDONTWRITEBYTECODE="")
    assert run(tmp_path) == "None True"
    assert not package.exists()


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, package):
    package.mkdir(parents=True)
    package.chmod(0o777)
    assert run(tmp_path) == "None True"


def test_a_place_chosen_by_the_user_stays(tmp_path, package):
    assert run(tmp_path, PYTHONPYCACHEPREFIX=str(tmp_path / "chosen")) == "None True"
    assert not package.exists()


def test_no_place_is_no_failure(tmp_path, package):
    (tmp_path / "cache").write_text("a file")
    assert run(tmp_path) == "None True"


def test_a_package_that_is_not_there(tmp_path):
    assert run(tmp_path, "from pyengine import bytecode; print(bytecode.keep('nowhere'))") == "None"
