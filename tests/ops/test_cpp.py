"""Builds and runs the C++ tests (tests/cpp/test_*.cpp): the kernels without torch and without Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted(path.stem for path in (ROOT / "tests" / "cpp").glob("test_*.cpp"))


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of the built test programs; kept between runs, so that only changed sources compile again."""
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("cmake and ninja are needed: pip install cmake ninja")
    build = ROOT / "build" / "cpp_tests"
    configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DPE_TORCH=OFF", "-DPE_TESTS=ON"]
    for command in (configure, ["cmake", "--build", build, "--parallel", "2"]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return build


@pytest.mark.timeout(900)
def test_no_code_leaks_from_files_of_one_instruction_set(programs: Path) -> None:
    """An inline function that a *_avx512 file emits as a weak symbol may be the copy that everyone gets."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    objects = [o for suffix in ("avx2", "avx512", "amx") for o in programs.rglob(f"*_{suffix}.cpp.o")]
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
        assert not [line for line in symbols if line.split()[-2] in ("W", "u")], path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TESTS)
def test_cpp(programs: Path, name: str) -> None:
    result = subprocess.run([programs / name], capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
