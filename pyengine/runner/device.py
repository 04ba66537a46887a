"""Which device the engine runs on, and what it offers: memory, threads, kernels.

Decided once at start. A machine with a GPU and a CUDA build of torch never silently computes on the CPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pyengine import ops
from pyengine.config import EngineConfig
from pyengine.errors import BuildError, ConfigError


@dataclass(frozen=True)
class Device:
    """A device and its memory in bytes at the moment of asking.

    Attributes:
        kind: "cpu" or "cuda".
        name: for people.
        total_bytes, free_bytes: of the GPU, or of what this process may still take on a CPU machine.
    """

    kind: str
    name: str
    total_bytes: int
    free_bytes: int

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if self.kind == "cuda" else torch.device("cpu")


def resolve_device(config: EngineConfig) -> Device:
    """The device that ``--device`` names, ready to use. Raises ConfigError or BuildError when it cannot be had."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: torch finds no usable GPU (is the driver installed, is torch a CUDA build?)")
    if config.device == "cpu" or not has_gpu:
        return _cpu(config)
    if not ops.has_cuda_kernels():
        raise BuildError(
            "this machine has a GPU, but pyengine was built without CUDA kernels; rebuild with nvcc on the PATH "
            "(pip install --force-reinstall --no-deps .) or choose --device cpu"
        )
    free, total = torch.cuda.mem_get_info()
    return Device("cuda", torch.cuda.get_device_name(), total, free)


def _cpu(config: EngineConfig) -> Device:
    num_threads = config.num_threads or len(os.sched_getaffinity(0))
    ops.set_num_threads(num_threads)
    torch.set_num_threads(1)  # our ops have a pool of their own; torch only allocates and slices
    total, available = host_memory()
    return Device("cpu", f"CPU, {num_threads} threads, {ops.isa()}", total, available)


def host_memory() -> tuple[int, int]:
    """Bytes of memory in all and available to this process, a container's limit included."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(limit_file).read_text())
        except (OSError, ValueError):
            continue
        total, available = min(total, limit), min(available, limit)
    return total, available
