"""``python -m bench.invariance.families``: bits in which mma.sync, wgmma and our ``linear`` (cuBLASLt) differ.

First the two instructions and cuBLASLt on the same product, k ascending; then every row of ``linear`` at many numbers
of rows against the same row in the largest product. Needs nvcc and a Hopper GPU.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pyengine import ops

LAYERS = {
    "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336),
    "qwen qkv": (4096, 1024), "qwen down": (1024, 3072),
    "smol qkv": (960, 576), "smol gate_up": (3072, 576), "smol down": (576, 1536),
}  # fmt: skip
ROWS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257, 384, 512, 777,
        1024, 1025, 2048, 3000, 4096, 4097, 8192)  # fmt: skip


def build() -> ctypes.CDLL:
    source = Path(__file__).with_name("mma_families.cu")
    target = Path(tempfile.mkdtemp()) / "mma_families.so"
    flags = ["-gencode=arch=compute_90a,code=sm_90a", "-O3", "-shared", "-Xcompiler=-fPIC"]
    subprocess.run(["nvcc", *flags, str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def instruction(library: ctypes.CDLL, name: str, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.full((len(x), len(w)), torch.nan, device="cuda")
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (y, x, w)]
    error = getattr(library, name)(*pointers, len(x), len(w), x.shape[1])
    if error:
        raise RuntimeError(f"{name}: CUDA error {error}")
    return y


def different(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.view(torch.int32) != b.view(torch.int32)).sum())


def inputs(kind: str, m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = torch.randn(m, k, device="cuda"), torch.randn(n, k, device="cuda")
    if kind == "wide":  # magnitudes over many binades: where an instruction aligns and truncates, it shows
        x, w = x * torch.exp2(torch.randn_like(x) * 6), w * torch.exp2(torch.randn_like(w) * 6)
    return x.bfloat16(), w.bfloat16()


def main() -> int:
    library = build()
    for kind in ("normal", "wide"):
        for name, (n, k) in LAYERS.items():
            x, w = inputs(kind, 256, min(n, 1024), k)
            mma, wgmma = (instruction(library, f"run_{family}", x, w) for family in ("mma", "wgmma"))
            lt = ops.linear(x, ops.pack_weight(w), out_dtype=torch.float32)
            lt_few = ops.linear(x[:16], ops.pack_weight(w), out_dtype=torch.float32)
            exact = x.double() @ w.double().T
            error = float((mma - exact).norm() / exact.norm())
            print(
                f"{kind} {name}: of {mma.numel()} elements differ: mma/wgmma {different(mma, wgmma)}, "
                f"mma/cuBLASLt {different(mma, lt)}, at 16 rows {different(mma[:16], lt_few)}; error {error:.1e}",
                flush=True,
            )
    for name, (n, k) in LAYERS.items():
        x, w = inputs("normal", ROWS[-1], n, k)
        packed = ops.pack_weight(w)
        whole = ops.linear(x, packed)
        wrong = {}
        for m in ROWS:
            rows = (ops.linear(x[:m], packed) != whole[:m]).any(dim=1)
            if rows.any():
                wrong[m] = int(rows.sum())
        print(
            f"{name}: rows that differ from those of {ROWS[-1]} rows, by number of rows: {wrong or 'none'}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
