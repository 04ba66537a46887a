"""``python -m bench.scheduler.bench_step``: microseconds of scheduler and block manager per step and per sequence.

Decoding batches of 1 to 1024 sequences whose tokens come from nowhere; every token sampled is counted, so a scheduler
that skips work is noticed. The budget: a 256-row decode of a small model takes a GPU about 2 ms, so the host may spend
2 us per sequence and step.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from pyengine.kv.block_manager import BlockManager
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams
from pyengine.sched.scheduler import Scheduler, SchedulerLimits
from pyengine.sched.step import StepOutput

STEPS, BUDGET_US = 300, 2.0


def measure(num_seqs: int) -> tuple[float, float]:
    """Median microseconds of ``schedule`` and of ``update`` for a step of ``num_seqs`` decodes."""
    limits = SchedulerLimits(max_num_seqs=num_seqs, max_num_batched_tokens=1 << 20, max_model_len=4096)
    scheduler = Scheduler(limits, BlockManager(num_seqs * 64, 16))
    rng = np.random.default_rng(0)
    for i in range(num_seqs):
        prompt = rng.integers(0, 1000, int(rng.integers(30, 100))).tolist()
        scheduler.add(Request(f"r{i}", prompt, SamplingParams(max_tokens=STEPS + 50, ignore_eos=True)))
    schedule_us, update_us, num_tokens = [], [], 0
    for number in range(STEPS):
        tokens = rng.integers(0, 1000, num_seqs).astype(np.int32)
        begin = time.perf_counter()
        step = scheduler.schedule()
        middle = time.perf_counter()
        deltas = scheduler.update(step, StepOutput(step.step_id, tokens))
        end = time.perf_counter()
        num_tokens += sum(len(delta.token_ids) for delta in deltas)
        if number >= 20:
            schedule_us.append((middle - begin) * 1e6)
            update_us.append((end - middle) * 1e6)
    if num_tokens != num_seqs * STEPS:
        raise SystemExit(f"{num_tokens} tokens came out of {num_seqs * STEPS}: not measured")
    return statistics.median(schedule_us), statistics.median(update_us)


def main() -> int:
    print("sequences   schedule us   update us   us per sequence (budget 2)")
    for num_seqs in (1, 16, 64, 256, 512, 1024):
        schedule, update = measure(num_seqs)
        print(f"{num_seqs:9d} {schedule:13.1f} {update:11.1f} {(schedule + update) / num_seqs:11.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
