"""What the sampler's stages and grammars cost: ``python -m bench.sampling stages structured --save``.

stages: steps of ``--rows`` greedy decodes, plain, with each stage and with all of them, taken in turns; each as a ratio
to the plain ones measured around it. structured: ``--streams`` requests whose answers are bound by a schema that never
lets them end, against the same requests free; the ratio of output tokens a second, prompts included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.serving import machine, records
from bench.stand_in import SHAPE, write_tokenizer
from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.models.config import load_model_config
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams
from pyengine.structured.grammar import compile_grammar

ENDLESS = {  # rows of every common kind, too many to come to the end of
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "minItems": 2000,
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "name": {"type": "string", "maxLength": 40},
                    "price": {"type": "number"},
                    "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
                },
                "required": ["id", "name", "price", "tags"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["rows"],
    "additionalProperties": False,
}


def stage_params(vocab_size: int) -> dict[str, dict]:
    """Parameters that turn on one stage, by its name, and all of the bar together."""
    penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.3, "presence_penalty": 0.2}
    masks = {"allowed_token_ids": tuple(range(0, vocab_size, 2))}
    return {
        "penalties": penalties,
        "log-probabilities": {"logprobs": 5},
        "masks": masks,
        "biases": {"logit_bias": dict.fromkeys(range(0, 300, 3), 0.5)},
        "penalties, log-probabilities, masks": penalties | {"logprobs": 5} | masks,
    }


class Crowd:
    """As many decoding sequences as a step has rows; they end when told to. Their prompts are always the same, so that
    all but the first time they come from the prefix cache.
    """

    def __init__(self, engine: Engine, rows: int, prompt: int):
        self._engine = engine
        self._rows = rows
        self._prompts = np.random.default_rng(0).integers(0, engine.facts.model.vocab_size, (rows, prompt)).tolist()
        self._count = 0

    def step_seconds(self, options: dict, steps: int) -> float:
        """Median of a step in which every row decodes, with all prompts computed before."""
        engine = self._engine
        names = [f"{self._count}-{i}" for i in range(self._rows)]
        self._count += 1
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=10 * steps, **options)
        for name, prompt in zip(names, self._prompts, strict=True):
            engine.add(Request(name, prompt, params))
        produced = dict.fromkeys(names, 0)
        while min(produced.values()) < 3:  # the first steps capture and allocate
            for delta in engine.step():
                produced[delta.request_id] += len(delta.token_ids)
        times, last = [], time.perf_counter()
        for _ in range(steps):
            num_tokens = sum(len(delta.token_ids) for delta in engine.step())
            now = time.perf_counter()
            if num_tokens != self._rows:
                raise SystemExit(f"a step made {num_tokens} tokens of {self._rows}: not measured")
            times.append(now - last)
            last = now
        engine.abort(names)
        while engine.has_work:
            engine.step()
        return statistics.median(times)


def measure_stages(engine: Engine, args: argparse.Namespace) -> dict:
    crowd = Crowd(engine, args.rows, args.prompt)
    kinds = stage_params(engine.facts.model.vocab_size)
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    plain = [crowd.step_seconds({}, args.steps)]
    for _ in range(args.repeats):
        for name, options in kinds.items():
            with_stage = crowd.step_seconds(options, args.steps)
            plain.append(crowd.step_seconds({}, args.steps))
            ratios[name].append(with_stage / statistics.mean(plain[-2:]))
    medians = {name: round(statistics.median(values), 4) for name, values in ratios.items()}
    step_ms = round(statistics.median(plain) * 1e3, 4)
    print(f"{args.rows} rows of context {args.prompt} and up: {step_ms} ms a plain step")
    for name, ratio in medians.items():
        print(f"  {name}: {ratio:.4f} of it, {(ratio - 1) * step_ms * 1e3:+.0f} us")
    return {"workload": f"stages of {args.rows} rows", "plain_step_ms": step_ms, "ratios": medians}


def run_streams(engine: Engine, args: argparse.Namespace, grammar: str | None, seed: int) -> float:
    """Output tokens a second."""
    rng = np.random.default_rng(seed)
    for i in range(args.streams):
        params = SamplingParams(seed=i, ignore_eos=True, max_tokens=args.output, grammar=grammar)
        prompt = rng.integers(0, engine.facts.model.vocab_size - 1, args.prompt).tolist()
        engine.add(Request(f"{seed}-{i}", prompt, params))
    begin, produced = time.perf_counter(), 0
    while engine.has_work:
        for delta in engine.step():
            if delta.error:
                raise SystemExit(f"a request failed: {delta.error}")
            produced += len(delta.token_ids)
    seconds = time.perf_counter() - begin
    if produced != args.streams * args.output:
        raise SystemExit(f"{produced} tokens of {args.streams * args.output}: an answer came to its end, not measured")
    return produced / seconds


def measure_structured(engine: Engine, args: argparse.Namespace) -> dict:
    grammar = compile_grammar({"json": ENDLESS})
    run_streams(engine, args, grammar, 0)  # the tokenizer's trie is built with the first
    run_streams(engine, args, None, 1)
    bound, free = [], []
    for repeat in range(args.repeats):
        free.append(run_streams(engine, args, None, 2 + 2 * repeat))
        bound.append(run_streams(engine, args, grammar, 3 + 2 * repeat))
    bound_rate, free_rate = statistics.median(bound), statistics.median(free)
    ratio = round(bound_rate / free_rate, 4)
    print(f"{args.streams} streams: {bound_rate:.0f} output tok/s bound by a schema, {free_rate:.0f} free: {ratio:.4f}")
    return {
        "workload": f"structured, {args.streams} streams",
        "output_tok_s": round(bound_rate, 1),
        "free_tok_s": round(free_rate, 1),
        "ratio": ratio,
    }


MEASURES = {"stages": measure_stages, "structured": measure_structured}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__.split("\n\n")[0])
    parser.add_argument("measures", nargs="+", choices=MEASURES, metavar="MEASURE", help=" or ".join(MEASURES))
    parser.add_argument("--model", type=Path, default=SHAPE, help="folder with the config.json of a shape")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=256, help="sequences of a step (stages)")
    parser.add_argument("--streams", type=int, default=64, help="requests at once (structured)")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=60, help="steps of each measurement (stages)")
    parser.add_argument("--output", type=int, default=256, help="tokens of each answer (structured)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="append to bench/results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), load_model_config(args.model).vocab_size)
        config = EngineConfig(
            model=str(args.model),
            tokenizer=folder,
            load_format="dummy",
            device=args.device,
            max_num_seqs=max(args.rows, args.streams),
            itl_target_ms=0,
        )
        engine = Engine.start(config)
        facts = engine.facts
        probed = machine.probe(facts.device.torch_device)
        print(f"{facts.device.name} | {facts.dtype} | {args.model.name} | {probed}", flush=True)
        measured = [
            {
                "shape": args.model.name,
                "mode": "sampling",
                **MEASURES[name](engine, args),
                "prompt_tokens": args.prompt,
                "device": facts.device.name,
                "dtype": facts.dtype,
                **probed,
                **records.origin(),
            }
            for name in args.measures
        ]
    if args.save:
        print(f"saved to {records.save(measured, facts.device.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
