"""pip's way into CMake: builds pyengine/_C.so and puts it beside the package. Flags and source lists live in
CMakeLists.txt.

``_C.so`` uses torch's stable ABI and no Python symbol, so it carries no Python version in its name and neither does
the wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import environment  # noqa: E402  (found through the line above; under pip it is on the path already)


class CMakeBuild(build_ext):
    """Configures and builds the target ``_C`` for the torch that the package will run with."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            torch = environment.build_torch()
            plan = environment.plan_cuda(torch, environment.cuda_wish)
            cmake, ninja = environment.require_tool("cmake"), environment.require_tool("ninja")
        except environment.BuildRefusal as refusal:
            sys.exit(f"pyengine: {refusal}")
        print(
            f"pyengine: building {'CPU and CUDA kernels' if plan.cuda else 'CPU kernels only'}: {plan.reason}",
            flush=True,
        )
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / "cmake"
        _forget_configuration(build_dir)
        configure = [
            cmake,
            "-S",
            ROOT,
            "-B",
            build_dir,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPE_TORCH_DIR={torch.folder}",
            f"-DPE_EXTENSION_DIR={output.parent}",
            f"-DPE_CUDA={'ON' if plan.cuda else 'OFF'}",
        ]
        if plan.nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={plan.nvcc.path}")
        try:
            subprocess.run(configure, check=True)
            jobs = str(len(os.sched_getaffinity(0)))
            subprocess.run([cmake, "--build", build_dir, "--target", "_C", "--parallel", jobs], check=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "pyengine: the native build failed; its first error is above "
                "(a C++17 compiler is needed: g++ 11 or clang 14 or newer)"
            )


def _forget_configuration(build_dir: Path) -> None:
    """Drop CMake's cache but keep the objects: compilers and torch may have moved with pip's isolated environment."""
    (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
    for folder in build_dir.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(folder)


class AnyPythonWheel(bdist_wheel):
    """One wheel per platform for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("pyengine._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
