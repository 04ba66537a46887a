"""The PEP 517 backend: setuptools, plus build requirements that depend on the machine.

pip asks here what to put into the isolated build environment. torch (hundreds of megabytes) is asked for only when
the target environment has none in range; cmake and ninja only when missing; NVIDIA's compiler only where a CUDA torch
meets a GPU and no nvcc. ``pip install . -C cuda=off`` (or ``on``) overrides the choice of kernels.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import environment
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not wrapped below)

Settings = dict[str, object] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements(config_settings)]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements(config_settings)]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    environment.cuda_wish = _cuda_wish(config_settings)
    for staging in Path("build").glob("lib*"):  # else a file that was deleted from the sources is packaged again
        shutil.rmtree(staging)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    environment.cuda_wish = _cuda_wish(config_settings)
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _requirements(config_settings: Settings) -> list[str]:
    requirements = [tool for tool in ("cmake", "ninja") if environment.find_tool(tool) is None]
    torch = environment.target_torch()
    if torch is None:
        requirements.append(environment.TORCH_REQUIREMENT)
    # Without a torch in the target, pip will resolve one; that of PyPI is a CUDA build, so the compiler is prepared
    # for it.
    cuda = torch.cuda if torch else environment.PYPI_TORCH_CUDA
    wish = _cuda_wish(config_settings)
    wanted = wish == "on" or (wish == "auto" and environment.has_nvidia_gpu())
    if wanted and cuda and environment.find_nvcc(cuda) is None:
        requirements += environment.compiler_packages(cuda)
    return requirements


def _cuda_wish(config_settings: Settings) -> str:
    return str((config_settings or {}).get("cuda", "auto"))
