"""Where a step's time goes on the GPU: ``python -m bench.serving.profile --model bench/shapes/llama31-8b
--load-format dummy nano``.

Runs a workload, lets it settle, traces a window of steps, and prints the time of each kernel and the share of the
window in which the GPU had nothing to do (the host's own time without the tracer is printed beside it).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from bench.serving import tuning
from bench.serving.workloads import NAMES, make_workload
from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams

GPU_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")


def busy_us(spans: list[tuple[float, float]]) -> float:
    """Length of the union of [begin, end) spans."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def trace(engine: Engine, num_steps: int) -> list[dict]:
    """The device's events of so many steps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_steps):
            engine.step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") in GPU_EVENTS]


def report(events: list[dict], num_steps: int, top: int) -> None:
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events]
    window = max(end for _, end in spans) - min(begin for begin, _ in spans)
    print(f"{num_steps} steps: {window / num_steps:.0f} us a step, GPU idle {1 - busy_us(spans) / window:.1%}")
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        times[event["name"]].append(event["dur"])
    for name, durations in sorted(times.items(), key=lambda item: -sum(item[1]))[:top]:
        share = sum(durations) / window
        print(
            f"{share:6.1%} {sum(durations) / num_steps:9.1f} us a step {len(durations) / num_steps:7.1f} x "
            f"{sum(durations) / len(durations):8.2f} us  {name[:110]}"
        )


def settle(engine: Engine, steps: int) -> float:
    """Runs so many steps untraced; the mean seconds of the last half."""
    begin = time.perf_counter()
    for step in range(steps):
        if step == steps // 2:
            begin = time.perf_counter()
        engine.step()
    return (time.perf_counter() - begin) / (steps - steps // 2)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.profile", description=__doc__.split("\n")[0])
    parser.add_argument("workload", choices=NAMES)
    parser.add_argument("--model", default=EngineConfig.model)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--settle", type=int, default=200, help="steps before the window (default 200)")
    parser.add_argument("--steps", type=int, default=30, help="steps of the window (default 30)")
    parser.add_argument("--top", type=int, default=25, help="kernels to list (default 25)")
    tuning.add_argument(parser)
    args = parser.parse_args(argv)
    tuning.apply(args.tuning)
    engine = Engine.start(EngineConfig(model=args.model, load_format=args.load_format, itl_target_ms=0))
    items = make_workload(args.workload, engine.facts.model.vocab_size)
    for i, item in enumerate(items):
        params = SamplingParams(max_tokens=item.max_tokens, ignore_eos=True, temperature=0.0)
        engine.add(Request(f"profile-{i}", item.prompt_token_ids, params))
    untraced = settle(engine, args.settle)
    print(f"{args.workload}: untraced {untraced * 1e6:.0f} us a step")
    report(trace(engine, args.steps), args.steps, args.top)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
