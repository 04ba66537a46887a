"""What equal bits cost: ``python -m bench.invariance.cost --save``.

The dense layers of one step, as ``ops.linear`` computes them (the same bits at every number of rows), against the best
that the vendor's library does when it may do anything, split-K included: torch's product through cuBLAS and through
cuBLASLt, whichever is faster for that layer and number of rows. Each layer of the shape has weights of its own, so all
are read from memory, as in a step; a GPU replays them as a CUDA graph. Ratios above 1 are the cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.serving import machine, records
from pyengine import ops
from pyengine.config import EngineConfig
from pyengine.models.config import ModelConfig, load_model_config
from pyengine.runner.device import resolve_device

SHAPE = Path(__file__).resolve().parents[1] / "shapes" / "llama31-8b"
ROWS = (1, 16, 64, 128, 256)
REPEATS = 15
LIBRARIES = ("cublas", "cublaslt")

Work = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """A kind of dense layer, [n, k], of which a step has ``count``."""

    name: str
    n: int
    k: int
    count: int
    float32_out: bool = False


def layers_of(config: ModelConfig) -> list[Layer]:
    hidden, inner, count = config.hidden_size, config.intermediate_size, config.num_layers
    return [
        Layer("qkv", config.q_size + 2 * config.kv_size, hidden, count),
        Layer("o", hidden, config.q_size, count),
        Layer("gate_up", 2 * inner, hidden, count),
        Layer("down", hidden, inner, count),
        Layer("head", config.vocab_size, hidden, 1, float32_out=True),
    ]


def random_weights(layer: Layer, device: torch.device) -> list[Tensor]:
    weights = [torch.empty(layer.n, layer.k, dtype=torch.bfloat16, device=device) for _ in range(layer.count)]
    bound = (3 / layer.k) ** 0.5
    return [weight.uniform_(-bound, bound) for weight in weights]


def ours(layer: Layer, x: Tensor, packed: list[ops.PackedWeight]) -> Work:
    out_dtype = torch.float32 if layer.float32_out else None
    return lambda: [ops.linear(x, weight, out_dtype=out_dtype) for weight in packed]


def free(layer: Layer, x: Tensor, weights: list[Tensor], library: str) -> Work:
    """torch's product through ``library``; logits in float32, as ours are, where torch can write them so."""
    options = {"out_dtype": torch.float32} if layer.float32_out and _writes_float32(x, weights[0]) else {}

    def work() -> list[Tensor]:
        torch.backends.cuda.preferred_blas_library(library)
        return [torch.mm(x, weight.t(), **options) for weight in weights]

    return work


def _writes_float32(x: Tensor, weight: Tensor) -> bool:
    try:
        torch.mm(x, weight.t(), out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def replayable(work: Work, device: torch.device) -> Work:
    """``work`` as a CUDA graph; on a CPU as it is."""
    work()
    if device.type != "cuda":
        return work
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def compare(works: dict[str, Work], device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turns, so that a change of clocks meets all of them."""
    ready = {name: replayable(work, device) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(REPEATS):
        for name, work in ready.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(layers: list[Layer], rows: list[int], device: torch.device) -> dict[int, dict[str, dict[str, float]]]:
    """Seconds of all layers of a kind in one step, by number of rows, kind, and who computes."""
    result: dict[int, dict[str, dict[str, float]]] = {m: {} for m in rows}
    for layer in layers:
        weights = random_weights(layer, device)
        packed = [ops.pack_weight(weight) for weight in weights]
        for m in rows:
            x = torch.randn(m, layer.k, device=device).bfloat16()
            works = {"ours": ours(layer, x, packed)}
            libraries = LIBRARIES if device.type == "cuda" else LIBRARIES[:1]  # there is one library on a CPU
            works |= {library: free(layer, x, weights, library) for library in libraries}
            result[m][layer.name] = compare(works, device)
        del weights, packed
    return result


def summary(measured: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict]:
    """By number of rows: milliseconds of a step, ours and the best for each layer, and the ratio of each."""
    by_rows = {}
    for m, kinds in measured.items():
        best = {name: min(s for who, s in times.items() if who != "ours") for name, times in kinds.items()}
        our_s = sum(times["ours"] for times in kinds.values())
        best_s = sum(best.values())
        by_rows[str(m)] = {
            "ours_ms": round(our_s * 1e3, 4),
            "free_ms": round(best_s * 1e3, 4),
            "ratio": round(our_s / best_s, 4),
            "layers": {name: round(times["ours"] / best[name], 3) for name, times in kinds.items()},
        }
    return by_rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.invariance.cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHAPE, help="folder with the config.json of a shape")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", action="store_true", help="append to bench/results")
    args = parser.parse_args(argv)
    device = resolve_device(EngineConfig(device=args.device))
    probed = machine.probe(device.torch_device)
    by_rows = summary(measure(layers_of(load_model_config(args.model)), args.rows, device.torch_device))
    print(f"{device.name} | {args.model.name}, dense layers of a step, ours against the best of torch's libraries")
    for m, line in by_rows.items():
        kinds = ", ".join(f"{name} {ratio:.3f}" for name, ratio in line["layers"].items())
        print(f"{m:>5} rows: {line['ours_ms']:.3f} / {line['free_ms']:.3f} ms = {line['ratio']:.3f}  ({kinds})")
    if args.save:
        record = {
            "shape": args.model.name,
            "workload": "dense step",
            "mode": "invariance",
            "by_rows": by_rows,
            "device": device.name,
            **probed,
            **records.origin(),
        }
        print(f"saved to {records.save([record], device.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
