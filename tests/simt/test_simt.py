"""The CUDA kernels on the CPU: each C++ test of this folder is built by g++ with the SIMT emulator and run.

test_NAME.cpp is linked with the kernels of the folder csrc/cuda/NAME, or of the one that holds NAME.cu, or of the one
that its line "// kernels: FOLDER" names.
AddressSanitizer and the cheap checks of UBSan see what guard bytes do not: reads outside buffers, misaligned vectors.
Needs g++, x86-64 and the CUDA headers (cuda_bf16.h), which come with any toolkit; no GPU, no nvcc.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
CUDA = REPO / "csrc/cuda"
CUDA_INCLUDE = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
COMPILE = [
    *("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-format-zero-length"),
    *("-fno-strict-aliasing", "-DPE_SIMT", f"-I{REPO}/csrc/include", f"-I{REPO}/csrc", f"-I{REPO}/tests/simt"),
    *("-isystem", str(CUDA_INCLUDE)),
]
SANITIZE = ["-fsanitize=address,alignment,bounds,shift", "-fno-sanitize-recover"]
TESTS = sorted(path.stem for path in Path(__file__).parent.glob("*.cpp"))

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator's context switch is x86-64"),
    pytest.mark.skipif(not (CUDA_INCLUDE / "cuda_bf16.h").exists(), reason=f"no CUDA headers in {CUDA_INCLUDE}"),
]


def run(command: list[str], **environment: str) -> str:
    """Runs a command and returns its output; a failure shows that output."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Builds a test into a program; the emulator it links with is built once."""
    folder = tmp_path_factory.mktemp("simt")
    (folder / "empty.cpp").write_text("int main() {}")
    probe = ["g++", *SANITIZE, str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    sanitizers = SANITIZE if subprocess.run(probe, capture_output=True).returncode == 0 else []  # a package of its own
    compiler = [*COMPILE, *sanitizers]
    archive = folder / "emulator.a"
    objects = []
    for source in [*sorted((REPO / "csrc/simt").glob("*.cpp")), REPO / "csrc/core.cpp"]:
        objects.append(str(folder / f"{source.stem}.o"))
        run([*compiler, "-c", str(source), "-o", objects[-1]])
    run(["ar", "rcs", str(archive), *objects])

    def build_test(test: Path) -> Path:
        program = folder / test.stem
        sources = [str(test), *kernels_of(test)]
        run([*compiler, "-x", "c++", *sources, "-x", "none", str(archive), "-o", str(program)])
        return program

    return build_test


def kernels_of(test: Path) -> list[str]:
    """The .cu files that a test is linked with; none for the emulator's own test."""
    named = re.search(r"^// kernels: (\w+)$", test.read_text(), re.MULTILINE)
    name = named[1] if named else test.stem.removeprefix("test_").removesuffix("_test")
    if name == "emulator":
        return []
    folders = [path for path in CUDA.iterdir() if path.name == name or (path / f"{name}.cu").exists()]
    assert len(folders) == 1, f"{test.name}: expected one folder {CUDA}/{name}, or with a {name}.cu, found {folders}"
    return [str(source) for source in sorted(folders[0].glob("*.cu"))]


@pytest.mark.parametrize("name", TESTS)
def test_kernels(name: str, build: Callable[[Path], Path]) -> None:
    program = build(REPO / "tests/simt" / f"{name}.cpp")
    output = run([str(program)], ASAN_OPTIONS="detect_stack_use_after_return=0")
    assert re.search(r"\d+ checks, 0 failed", output), output
