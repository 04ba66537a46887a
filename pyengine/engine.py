"""The engine: a scheduler, a runner, and one step at a time. No sockets, no text.

schedule ──▶ execute ──▶ wait ──▶ update        one step in flight (CPU)
schedule N+1 while the device computes N        two in flight (GPU): only *when* ``wait`` is called differs
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pyengine import ops
from pyengine.config import EngineConfig
from pyengine.kv.block_manager import BlockManager
from pyengine.kv.host_tier import HostTier
from pyengine.models.config import FP8, ModelConfig, load_model_config, resolve_dtype, resolve_kv_dtype
from pyengine.models.progress import Progress, silent
from pyengine.models.resolve import resolve_model
from pyengine.models.weights.loader import load_model
from pyengine.protocol import Ready, Request, Stats, TokenDelta
from pyengine.runner.device import Device, host_memory, resolve_device
from pyengine.runner.host_arena import plan_host_blocks
from pyengine.runner.kv_memory import MemoryPlan, plan_memory
from pyengine.runner.model_runner import ModelRunner
from pyengine.runner.output import PendingOutput
from pyengine.sampling.masks import GrammarMasks
from pyengine.sched.budget import FixedBudget, TimedBudget
from pyengine.sched.cost_model import CostModel, TokenCurve
from pyengine.sched.scheduler import Scheduler, SchedulerLimits
from pyengine.sched.step import StepInput
from pyengine.sched.swap_choice import SwapChoice
from pyengine.structured.lazy import LazyGrammars

GRAMMAR_WAIT_S = 0.001


@dataclass(frozen=True)
class EngineFacts:
    """What the engine learnt while it started; ``Ready`` carries it to the server."""

    model_path: Path
    model: ModelConfig
    dtype: str
    kv_dtype: str  # of the KV cache
    device: Device
    plan: MemoryPlan
    startup_s: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    def ready(self) -> Ready:
        plan = self.plan
        return Ready(
            model_name=self.model.architecture,
            max_model_len=plan.max_model_len,
            vocab_size=self.model.vocab_size,
            num_blocks=plan.num_blocks,
            block_size=plan.block_size,
            dtype=self.dtype,
            device=self.device.name,
            max_num_seqs=plan.max_num_seqs,
            max_num_batched_tokens=plan.max_num_batched_tokens,
            startup_s=self.startup_s,
            memory=plan.ledger,
            notes=[*self.notes, *plan.warnings],
            hidden_size=self.model.hidden_size,
            kv_cache_dtype=self.kv_dtype,
        )


class Engine:
    """Generates tokens for requests. Build one with ``Engine.start``."""

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, facts: EngineFacts, grammars: LazyGrammars, overlap: bool
    ):
        self.scheduler = scheduler
        self.facts = facts
        self._runner = runner
        self._grammars = grammars
        self._overlap = overlap  # whether a step's tokens are waited for only after the next pass was issued
        self._inflight: tuple[StepInput, PendingOutput, float] | None = None  # and when it began, monotonic
        self._last_end_s = 0.0

    @classmethod
    def start(cls, config: EngineConfig, progress: Progress | None = None) -> Engine:
        """Resolve the model and the device, plan the memory, load the weights, capture the first graphs.

        Raises:
            ConfigError, ModelError, BuildError: one line each, before anything large is loaded where possible.
        """
        phases = _Phases()
        progress = progress or silent
        with phases("resolve model"):
            path = resolve_model(config.model, config.revision, progress)
            model = load_model_config(path)
        with phases("device"):
            device = resolve_device(config)
            dtype, note = resolve_dtype(config.dtype, model, device.kind)
            kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype, model, device.kind)
            plan = _plan(config, model, dtype, kv_dtype, device)
        with phases("load weights"):
            shortened = dataclasses.replace(
                model, max_position=plan.max_model_len
            )  # no rotary table for positions that cannot come
            graph = load_model(
                path,
                shortened,
                dtype,
                device.torch_device,
                progress,
                config.seed if config.load_format == "dummy" else None,
                with_kv_scales=kv_dtype == FP8,
            )
        with phases("warm up"):
            num_host = plan_host_blocks(config.cpu_cache_gb, plan.block_bytes, host_memory()[1])
            runner = ModelRunner(
                graph, model, device.torch_device, getattr(torch, kv_dtype), plan, config.enforce_eager, num_host
            )
            runner.warm_up()
        limits = SchedulerLimits(
            max_num_seqs=plan.max_num_seqs,
            max_num_batched_tokens=plan.max_num_batched_tokens,
            max_model_len=plan.max_model_len,
        )
        grammars = LazyGrammars(config.tokenizer or path, model.vocab_size)
        costs = CostModel(TokenCurve(runner.product_times) if runner.product_times else None)
        policy = FixedBudget(plan.max_num_batched_tokens)
        if config.itl_target_ms or num_host:
            target_s = config.itl_target_ms / 1000 or math.inf
            policy = TimedBudget(plan.max_num_batched_tokens, target_s, costs)
        tier = HostTier(num_host, SwapChoice(runner.host_arena.measure_copy_s(), plan.block_size, costs))
        blocks = BlockManager(plan.num_blocks, plan.block_size, config.prefix_caching, tier)
        scheduler = Scheduler(limits, blocks, grammars.make, policy)
        notes = [note] if note else []
        if kv_dtype == FP8:
            scales = "the checkpoint's scales" if graph.has_kv_scales else "no scales in the checkpoint: 1 for all"
            notes.append(f"the KV cache is {kv_dtype} ({scales})")
        facts = EngineFacts(path, model, dtype, kv_dtype, device, plan, phases.seconds, tuple(notes))
        return cls(scheduler, runner, facts, grammars, device.kind == "cuda" and config.async_scheduling)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError when it can never be served."""
        self.scheduler.add(request)

    def abort(self, request_ids: list[str]) -> None:
        self.scheduler.abort(request_ids)

    def abort_sequence(self, request_id: str, index: int) -> None:
        self.scheduler.abort_sequence(request_id, index)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._inflight is not None

    def step(self) -> list[TokenDelta]:
        """Issue the next pass; take in the tokens of the one before it; issue the draw. Returns the tokens taken in.

        So the device computes while the host updates, and a grammar's mask is ready when the logits are.
        """
        begin_s = time.monotonic()
        step = self.scheduler.schedule()
        issued = None if step is None else self._runner.forward(step)
        deltas = self._retire()
        if issued is not None:
            pending = self._runner.sample(issued, self._grammar_masks())
            self._inflight = (step, pending, begin_s)
            if not self._overlap:
                deltas += self._retire()
        elif not deltas:
            time.sleep(GRAMMAR_WAIT_S)  # there is work, but none that can run: a grammar is being prepared
        return deltas + self.scheduler.take_failures()

    def _retire(self) -> list[TokenDelta]:
        """Wait for the draw in flight, if any, and give its tokens to their sequences."""
        if self._inflight is None:
            return []
        (step, pending, begin_s), self._inflight = self._inflight, None
        output, now_s = pending.wait(), time.monotonic()
        # An overlapped step begins when the one before it ends: this is what its streams wait for their next token.
        self.scheduler.observe(step, now_s - max(begin_s, self._last_end_s))
        self._last_end_s = now_s
        return self.scheduler.update(step, output)

    def _grammar_masks(self) -> GrammarMasks | None:
        """What the grammars of the newest step allow, all earlier tokens being known."""
        constrained = self.scheduler.constrained_sequences()
        if not constrained:
            return None
        masks = self._runner.grammar_masks(np.asarray([index for index, _ in constrained]))
        self._grammars.fill([grammar for _, grammar in constrained], masks.rows.numpy())
        return masks

    def stats(self) -> Stats:
        return self.scheduler.stats()


def _plan(config: EngineConfig, model: ModelConfig, dtype: str, kv_dtype: str, device: Device) -> MemoryPlan:
    """The memory plan; the attention's buffers depend on the plan's own limits, so it is made twice where they
    matter.
    """
    sizes = (device.total_bytes, device.free_bytes)
    plan = plan_memory(config, model, dtype, device.kind, *sizes, kv_dtype=kv_dtype)
    num_bytes = sum(
        ops.attention_buffer_bytes(
            plan.max_num_seqs,
            plan.max_num_batched_tokens,
            plan.max_model_len,
            model.num_heads,
            model.num_kv_heads,
            model.head_dim,
            getattr(torch, kv_dtype),
            device.torch_device,
        )
    )
    if num_bytes:
        plan = plan_memory(config, model, dtype, device.kind, *sizes, num_bytes, kv_dtype)
    return plan


class _Phases:
    """Seconds of each phase of the start, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin
