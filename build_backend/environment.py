"""What the build finds out about the machine: the torch to build for, the CUDA compiler, the GPU.

The torch that matters is the one that the package will run with. Under pip's build isolation that is not the one on
``sys.path``, so the target environment's own site-packages are looked up first. A torch found there is never
imported: its version is read from ``torch/version.py`` as text, its headers and libraries are used as files. Nothing
but the standard library is imported here; CMake runs this file as a script.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MIN_TORCH, MAX_TORCH = (2, 11), (2, 14)  # the second is excluded
TORCH_REQUIREMENT = "torch>=2.11,<2.14"
PYPI_TORCH_CUDA = "13.0"  # what the package index's torch of this range is built for
MIN_CMAKE = (3, 22)

cuda_wish = "auto"  # auto, on or off: set by the backend from ``-C cuda=...`` before setup.py runs


@dataclass(frozen=True)
class Torch:
    """A torch package as files: its folder, its version, the CUDA version it was built for (None: a CPU build)."""

    folder: Path
    version: str
    cuda: str | None

    @property
    def in_range(self) -> bool:
        return MIN_TORCH <= tuple(int(n) for n in re.findall(r"\d+", self.version)[:2]) < MAX_TORCH

    def __str__(self) -> str:
        return f"torch {self.version} ({'CUDA ' + self.cuda if self.cuda else 'CPU build'})"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and its version, such as (13, 0)."""

    path: Path
    version: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Whether CUDA kernels are built, with which compiler, and why: the line that the build prints."""

    cuda: bool
    reason: str
    nvcc: Nvcc | None = None


class BuildRefusal(Exception):
    """The build must not go on; the text is one line that says what to do."""


def target_site_packages() -> list[Path]:
    """The site-packages of the environment that pip installs into, also when this runs isolated from it.

    pip runs the build with the target environment's own interpreter and hides its packages by path alone, so the
    interpreter's prefix still tells where they are.
    """
    folders = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    prefixes = [sys.prefix] if sys.prefix == sys.base_prefix or not _sees_base() else [sys.prefix, sys.base_prefix]
    folders += site.getsitepackages(prefixes)
    if len(prefixes) > 1 or sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(folders)]


def _sees_base() -> bool:
    """Whether this virtual environment was made with --system-site-packages."""
    config = Path(sys.prefix, "pyvenv.cfg")
    return config.is_file() and bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true", config.read_text()))


def torch_in(folders: list[Path]) -> Torch | None:
    """The first torch in ``folders``, as the interpreter would find it, or None."""
    for folder in folders:
        version_file = folder / "torch" / "version.py"
        if version_file.is_file():
            text = version_file.read_text(encoding="utf-8")
            version = re.search(r"(?m)^__version__\s*=\s*['\"]([^'\"]+)", text)
            cuda = re.search(r"(?m)^cuda\b[^=]*=\s*['\"]([^'\"]+)", text)
            if version:
                return Torch(folder / "torch", version.group(1), cuda.group(1) if cuda else None)
    return None


def target_torch() -> Torch | None:
    """The torch of the target environment when it is in range, else None."""
    found = torch_in(target_site_packages())
    return found if found and found.in_range else None


def build_torch() -> Torch:
    """The torch to compile against: the target's, else the one that the isolated build environment got."""
    found = target_torch() or torch_in([Path(entry) for entry in sys.path if entry])
    if found is None:
        raise BuildRefusal(f"no torch found to build against; run: pip install '{TORCH_REQUIREMENT}'")
    if not found.in_range:
        raise BuildRefusal(
            f"torch {found.version} in {found.folder.parent} is outside the range; "
            f"run: pip install '{TORCH_REQUIREMENT}'"
        )
    return found


def find_tool(name: str) -> str | None:
    """The path of cmake or ninja that runs and is new enough, or None.

    It is run to know: the target environment's own cmake is a Python script that finds its package no more under
    isolation.
    """
    for path in dict.fromkeys(
        filter(None, [shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts"))])
    ):
        try:
            result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        numbers = tuple(int(n) for n in re.findall(r"\d+", result.stdout)[:2])
        if result.returncode == 0 and (name != "cmake" or numbers >= MIN_CMAKE):
            return path
    return None


def require_tool(name: str) -> str:
    path = find_tool(name)
    if path is None:
        raise BuildRefusal(f"{name} is missing or too old; run: pip install {name}")
    return path


def has_nvidia_gpu() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/proc/driver/nvidia/gpus/*") or os.path.exists("/dev/dxg"))


def find_nvcc(cuda: str) -> Nvcc | None:
    """An nvcc whose major version is that of ``cuda``: the system's, else one from pip's packages."""
    candidates = [shutil.which("nvcc")]
    candidates += [
        os.path.join(home, "bin", "nvcc") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home
    ]
    candidates += ["/usr/local/cuda/bin/nvcc", *sorted(glob.glob("/usr/local/cuda-*/bin/nvcc"), reverse=True)]
    for folder in [*(Path(entry) for entry in sys.path if entry), *target_site_packages()]:
        candidates += sorted(glob.glob(str(folder / "nvidia" / "cu[0-9]*" / "bin" / "nvcc")))
    for path in dict.fromkeys(filter(None, candidates)):
        version = _nvcc_version(path)
        if version and version[0] == int(cuda.split(".")[0]):
            return Nvcc(Path(path).resolve(), version)
    return None


def _nvcc_version(path: str) -> tuple[int, int] | None:
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def compiler_packages(cuda: str) -> list[str]:
    """pip's packages of NVIDIA's compiler for a CUDA version such as ``13.0``; none hold an nvcc before CUDA 13."""
    major, minor = cuda.split(".")[:2]
    if int(major) < 13:
        return []
    names = ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-nvvm", "nvidia-cuda-crt")
    return [f"{name}=={major}.{minor}.*" for name in names]


def plan_cuda(torch: Torch, wish: str = "auto") -> Plan:
    """Decide on CUDA kernels. ``wish``: auto, on or off (``pip install . -C cuda=off``).

    Raises:
        BuildRefusal: kernels are wanted, by wish or because there is a GPU and torch is a CUDA build, but nvcc is
            missing.
    """
    if wish not in ("auto", "on", "off"):
        raise BuildRefusal(f"-C cuda={wish}: expected auto, on or off")
    if wish == "off":
        return Plan(False, "asked for with -C cuda=off")
    if torch.cuda is None:
        if wish == "on":
            raise BuildRefusal(f"-C cuda=on, but {torch} cannot use a GPU; install a CUDA build of torch first")
        return Plan(False, f"{torch} is what the package will run with")
    nvcc = find_nvcc(torch.cuda)
    if nvcc:
        return Plan(True, f"{torch} and nvcc {nvcc.version[0]}.{nvcc.version[1]} ({nvcc.path})", nvcc)
    if wish == "on" or has_nvidia_gpu():
        raise BuildRefusal(
            f"{torch} on a GPU machine needs nvcc {torch.cuda.split('.')[0]}.x to build the kernels; "
            f"install the CUDA toolkit {torch.cuda}{_pip_hint(torch.cuda)}, "
            "or choose CPU kernels with: pip install . -C cuda=off"
        )
    return Plan(False, f"{torch}, but there is neither a GPU nor nvcc {torch.cuda.split('.')[0]}.x")


def _pip_hint(cuda: str) -> str:
    packages = compiler_packages(cuda)
    return f" (or: pip install {' '.join(packages)})" if packages else ""


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--torch-dir"]:
            print(build_torch().folder)
        else:
            print(f"{build_torch()}: CUDA kernels: {plan_cuda(build_torch())}")
    except BuildRefusal as refusal:
        sys.exit(f"pyengine: {refusal}")
