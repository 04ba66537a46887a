"""Offline workloads through the engine: ``python -m bench.serving.offline --model bench/shapes/llama31-8b
--load-format dummy nano prefill``.

Each workload runs once to warm up (with other prompts, and the prefix cache is emptied) and then ``--repeats`` times;
the median counts. The records go into bench/results/<device>.json, one per workload and run of this program: shape,
workload, seconds, tokens per second, what the machine could do in the same minute, commit and date.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from bench.serving import machine, records, tuning
from bench.serving.workloads import NAMES, Item, make_workload
from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams

SAMPLED = {"temperature": 0.8, "top_p": 0.95, "top_k": 50}


def run(engine: Engine, items: list[Item], sampling: dict) -> tuple[float, dict[str, list[int]]]:
    """Seconds from the first request to the last token, and every request's tokens."""
    tokens: dict[str, list[int]] = {}
    begin = time.perf_counter()
    for i, item in enumerate(items):
        params = SamplingParams(max_tokens=item.max_tokens, ignore_eos=True, seed=i, **sampling)
        engine.add(Request(f"bench-{i}", item.prompt_token_ids, params))
        tokens[f"bench-{i}"] = []
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.token_ids
    return time.perf_counter() - begin, tokens


def check(items: list[Item], tokens: dict[str, list[int]], vocab_size: int) -> None:
    """Every request has exactly the tokens it asked for, all of the vocabulary; a run that fails this is not a
    measurement.
    """
    for i, item in enumerate(items):
        produced = tokens[f"bench-{i}"]
        if len(produced) != item.max_tokens or not all(0 <= token < vocab_size for token in produced):
            raise SystemExit(f"request {i} produced {len(produced)} tokens of {item.max_tokens}: not measured")


def measure(engine: Engine, name: str, repeats: int, sampled: bool, warm_up: bool) -> dict:
    vocab_size = engine.facts.model.vocab_size
    sampling = SAMPLED if sampled else {"temperature": 0.0}
    seconds = []
    for repeat in range(0 if warm_up else 1, repeats + 1):
        items = make_workload(name, vocab_size, seed=repeat)
        engine.scheduler.blocks.flush_cache()
        elapsed, tokens = run(engine, items, sampling)
        check(items, tokens, vocab_size)
        if repeat:
            seconds.append(elapsed)
    median = statistics.median(seconds)
    num_output = sum(item.max_tokens for item in items)
    num_prompt = sum(len(item.prompt_token_ids) for item in items)
    return {
        "workload": name + (" sampled" if sampled else ""),
        "seconds": round(median, 4),
        "seconds_all": [round(s, 4) for s in seconds],
        "output_tok_s": round(num_output / median, 1),
        "all_tok_s": round((num_output + num_prompt) / median, 1),
    }


def weight_read_fraction(engine: Engine, record: dict, read_gb_s: float, steps: int) -> float:
    """Share of the memory bandwidth that reading all weights once per step would take alone; for one stream on a
    CPU.
    """
    num_bytes = engine.facts.model.num_parameters * (2 if engine.facts.dtype != "float32" else 4)
    return num_bytes * steps / record["seconds"] / 1e9 / read_gb_s


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.offline", description=__doc__.split("\n")[0])
    parser.add_argument(
        "workloads",
        nargs="+",
        choices=[*NAMES, *(f"{name}:sampled" for name in NAMES)],
        metavar="WORKLOAD",
        help=f"one of {', '.join(NAMES)}; with :sampled at T 0.8, top-p 0.95, top-k 50",
    )
    parser.add_argument("--model", default=EngineConfig.model)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--max-num-seqs", type=int, default=None)
    parser.add_argument("--max-num-batched-tokens", type=int, default=None)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="append to bench/results")
    tuning.add_argument(parser)
    args = parser.parse_args(argv)
    own = ("workloads", "repeats", "save", "tuning")
    options = {name: value for name, value in vars(args).items() if name not in own}
    forced = tuning.apply(args.tuning)
    engine = Engine.start(EngineConfig(**options, itl_target_ms=0))
    facts = engine.facts
    probed = machine.probe(facts.device.torch_device)
    types = f"{facts.dtype}, KV {facts.kv_dtype}"
    print(f"{facts.device.name} | {types} | {probed} | start {sum(facts.startup_s.values()):.1f} s", flush=True)
    measured = []
    for spec in args.workloads:
        name, _, sampled = spec.partition(":")
        record = {
            "shape": Path(args.model).name,
            **measure(engine, name, args.repeats, bool(sampled), warm_up=not measured),
            "device": facts.device.name,
            "dtype": facts.dtype,
            "kv_cache_dtype": facts.kv_dtype,
            **probed,
            **records.origin(),
            **({"tuning": forced} if forced else {}),
        }
        rates = f"{record['output_tok_s']} output tok/s, {record['all_tok_s']} tok/s"
        line = f"{record['shape']} {record['workload']}: {record['seconds']} s, {rates}"
        if "read_gb_s" in probed and name == "chat1":
            record["weight_read_fraction"] = round(weight_read_fraction(engine, record, probed["read_gb_s"], 128), 3)
            line += f", {record['weight_read_fraction']:.0%} of the measured read bandwidth for weights alone"
        print(line, flush=True)
        measured.append(record)
    if args.save:
        print(f"saved to {records.save(measured, facts.device.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
