"""``python -m bench.scheduler.bench_step``: microseconds of the host per step and per sequence in the steady state.

Decoding batches of 1 to 1024 sequences whose tokens come from nowhere, nobody joining or ending; every token sampled is
counted, so a scheduler that skips work is noticed. ``schedule`` includes the block that every 16th token needs, and
``message`` turns the deltas into the bytes that a server gets. The budget: a 256-row decode of a small model takes a
GPU about 2 ms, most of which must be left to the rest of the host's work: 1 us per sequence and step.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from pyengine.kv.block_manager import BlockManager
from pyengine.protocol import Request, StepDeltas, encode
from pyengine.sampling_params import SamplingParams
from pyengine.sched.scheduler import Scheduler, SchedulerLimits
from pyengine.sched.step import StepOutput

STEPS = 300


def measure(num_seqs: int) -> list[float]:
    """Median microseconds of ``schedule``, ``update`` and message for a step of ``num_seqs`` decodes."""
    limits = SchedulerLimits(max_num_seqs=num_seqs, max_num_batched_tokens=1 << 20, max_model_len=4096)
    scheduler = Scheduler(limits, BlockManager(num_seqs * 64, 16))
    rng = np.random.default_rng(0)
    for i in range(num_seqs):
        prompt = rng.integers(0, 1000, int(rng.integers(30, 100))).tolist()
        scheduler.add(Request(f"cmpl-{i:032x}", prompt, SamplingParams(max_tokens=STEPS + 50, ignore_eos=True)))
    times_us, num_tokens = [], 0
    for number in range(STEPS):
        tokens = rng.integers(0, 1000, num_seqs).astype(np.int32)
        begin = time.perf_counter()
        step = scheduler.schedule()
        scheduled = time.perf_counter()
        deltas = scheduler.update(step, StepOutput(step.step_id, tokens))
        updated = time.perf_counter()
        encode(StepDeltas(deltas))
        end = time.perf_counter()
        num_tokens += sum(len(delta.token_ids) for delta in deltas)
        if number >= 20:
            times_us.append([(b - a) * 1e6 for a, b in ((begin, scheduled), (scheduled, updated), (updated, end))])
    if num_tokens != num_seqs * STEPS:
        raise SystemExit(f"{num_tokens} tokens came out of {num_seqs * STEPS}: not measured")
    return [statistics.median(column) for column in zip(*times_us, strict=True)]


def main() -> int:
    print("sequences   schedule us   update us   message us   us per sequence (budget 1)")
    for num_seqs in (1, 16, 64, 256, 512, 1024):
        schedule, update, message = measure(num_seqs)
        per_seq = (schedule + update + message) / num_seqs
        print(f"{num_seqs:9d} {schedule:13.1f} {update:11.1f} {message:12.1f} {per_seq:11.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
