"""What the machine can do, probed in the same run as the workloads, so that figures of different cards and moments
compare.

``python -m bench.serving.machine`` prints it as JSON: for a client that measures a server which holds the GPU.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # imported where it is used: a client over HTTP needs the commit and nothing else of this


def commit() -> str:
    """Short hash of the checked-out commit, with a plus when files differ from it; "unknown" outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def probe(device: torch.device) -> dict[str, float]:
    """On a GPU: copy TB/s (read + write) and 8192^3 bf16 GEMM TFLOP/s on random data. On a CPU: read GB/s with all its
    threads.
    """
    if device.type == "cuda":
        return {"copy_tb_s": round(_gpu_copy_tb_s(device), 3), "gemm_tflop_s": round(_gpu_gemm_tflop_s(device), 1)}
    return {"read_gb_s": round(_cpu_read_gb_s(), 1)}


def _gpu_seconds(work, repeats: int) -> float:
    import torch

    work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _gpu_copy_tb_s(device: torch.device) -> float:
    import torch

    num_bytes = 2 << 30
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _gpu_seconds(lambda: target.copy_(source), 9) / 1e12


def _gpu_gemm_tflop_s(device: torch.device) -> float:
    import torch

    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _gpu_seconds(lambda: a @ b, 15) / 1e12


def _cpu_read_gb_s() -> float:
    """Reads 512 MiB by our own threads' counterpart in torch: a sum, which is limited by memory on any recent core."""
    import torch

    from pyengine import ops

    threads, ours = torch.get_num_threads(), ops.num_threads()
    torch.set_num_threads(ours)
    data = torch.ones(128 << 20, dtype=torch.float32)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return data.numel() * 4 / min(times) / 1e9


def main() -> int:
    """The device that the engine would take, and what it can do now."""
    import torch

    if torch.cuda.is_available():
        name, device = torch.cuda.get_device_name(), torch.device("cuda")
    else:
        from pyengine.config import EngineConfig
        from pyengine.runner.device import resolve_device

        name, device = resolve_device(EngineConfig()).name, torch.device("cpu")
    print(json.dumps({"device": name, **probe(device)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
