"""A device of which only the time is real: a scheduler's steps cost what a function says, on a clock of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from pyengine.kv.block_manager import BlockManager
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams
from pyengine.sched.budget import StepPolicy
from pyengine.sched.cost_model import StepWork
from pyengine.sched.scheduler import Scheduler, SchedulerLimits
from pyengine.sched.step import StepOutput

Cost = Callable[[StepWork], float]


def large_gpu(work: StepWork) -> float:
    """About an 8B model on an H100: weights are read in 5 ms, which hides the arithmetic of some 280 tokens."""
    arithmetic = 17.7e-6 * (work.num_decodes + work.num_prompt_tokens)
    return 1.5e-3 + max(5e-3, arithmetic) + 43.7e-9 * work.num_context + 0.85e-9 * work.num_pairs


def small_cpu(work: StepWork) -> float:
    """About a 135M model on two cores."""
    return 9e-3 + 0.6e-3 * work.num_decodes + 0.5e-3 * work.num_prompt_tokens + 2e-7 * work.num_context


class Simulation:
    """Two steps in flight, as on a GPU; ``noise`` is the steps' relative scatter."""

    def __init__(self, policy: StepPolicy, cost: Cost, *, noise: float = 0.02, max_num_batched_tokens: int = 8192):
        limits = SchedulerLimits(max_num_seqs=256, max_num_batched_tokens=max_num_batched_tokens, max_model_len=32768)
        self.scheduler = Scheduler(limits, BlockManager(40000, 16, prefix_caching=False), policy=policy)
        self.cost = cost
        self.now_s = 0.0
        self.rng = np.random.default_rng(0)
        self.first_token_s: dict[str, float] = {}
        self.gaps_s: dict[str, list[float]] = defaultdict(list)
        self.added_s: dict[str, float] = {}
        self.step_sizes: list[int] = []
        self._last_s: dict[str, float] = {}
        self._noise = noise
        self._inflight = None

    def add(self, name: str, num_prompt: int, num_output: int) -> None:
        params = SamplingParams(max_tokens=num_output, ignore_eos=True)
        self.added_s[name] = self.now_s
        self.scheduler.add(Request(name, [1] * num_prompt, params))

    def step(self) -> None:
        step = self.scheduler.schedule()
        if self._inflight is not None:
            self._retire(*self._inflight)
        self._inflight = None
        if step is not None:
            seconds = self.cost(StepWork.of(step)) * max(0.5, self.rng.normal(1.0, self._noise))
            self._inflight = step, seconds
            self.step_sizes.append(step.num_tokens)

    def _retire(self, step, seconds: float) -> None:
        self.now_s += seconds
        self.scheduler.observe(step, seconds)
        num_sampled = int(step.samples.sum())
        for delta in self.scheduler.update(step, StepOutput(step.step_id, np.zeros(num_sampled, np.int32))):
            name = delta.request_id
            if name in self._last_s:
                self.gaps_s[name].append(self.now_s - self._last_s[name])
            else:
                self.first_token_s[name] = self.now_s - self.added_s[name]
            self._last_s[name] = self.now_s

    def run(self, seconds: float = float("inf"), limit: int = 100000) -> None:
        """Until so much time has passed or nothing is left to do."""
        until_s = self.now_s + seconds
        for _ in range(limit):
            if self.now_s >= until_s or not (self.scheduler.has_work or self._inflight):
                return
            self.step()
        raise AssertionError("the scheduler makes no progress")

    def all_gaps_s(self) -> np.ndarray:
        return np.concatenate([gaps for gaps in self.gaps_s.values() if gaps])
