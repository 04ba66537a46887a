"""The model runner: executes one StepInput on the device.

The law of this file: only what every model and every step needs. A feature that some requests use is an object of its
own behind one call here; nothing in here asks what a request wants, and nothing synchronises with the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.layers.context import ForwardContext
from pyengine.layers.host_memory import empty_on_huge_pages
from pyengine.models.config import ModelConfig
from pyengine.ops import AttentionMetadata
from pyengine.runner.device_state import DeviceState, InputBatch, PassSize, sampling_rows
from pyengine.runner.graphs import EagerPass, make_graph_pass
from pyengine.runner.host_arena import HostArena
from pyengine.runner.kv_memory import MemoryPlan
from pyengine.runner.output import OutputCopies, PendingOutput
from pyengine.runner.prompt_reader import PromptReader, PromptTensors
from pyengine.runner.staging import RING, Staging
from pyengine.sampling.masks import GrammarMaskRing, GrammarMasks
from pyengine.sampling.sampler import Sampler
from pyengine.sampling.stage import SamplingStep
from pyengine.sched.step import StepInput


@dataclass(frozen=True)
class Pass:
    """An issued pass: its logits float32 [num_seqs, vocab_size] wait on the device for the draw, until the next pass
    is issued; what it read of prompts waits for the host.
    """

    step: StepInput
    batch: InputBatch
    logits: Tensor
    read: PromptTensors | None = None


class ModelRunner:
    """Owns the KV arena, the device rows and the captured passes of one model on one device.

    Args:
        model: as ``models.loader.load_model`` returns it.
        device: where its weights are.
        kv_dtype: element type of the KV cache.
        plan: sizes of cache and step.
        enforce_eager: never capture.
        num_host_blocks: of the host tier.
    """

    def __init__(
        self,
        model,
        config: ModelConfig,
        device: torch.device,
        kv_dtype: torch.dtype,
        plan: MemoryPlan,
        enforce_eager: bool = False,
        num_host_blocks: int = 0,
    ):
        self._model = model
        self._config = config
        self._plan = plan
        # A block holds all layers side by side: copying or swapping a block is one contiguous copy.
        self._arena = _empty_arena(
            (plan.num_blocks, config.num_layers, 2, config.num_kv_heads, plan.block_size, config.head_dim),
            kv_dtype,
            device,
        )
        self.host_arena = HostArena(self._arena, num_host_blocks)
        self._kv_caches = tuple(
            (self._arena[:, layer, 0], self._arena[:, layer, 1]) for layer in range(config.num_layers)
        )
        self._staging = Staging(device, (1 << 16) + 8 * plan.max_num_seqs)
        self._state = DeviceState(plan, device, self._staging)
        self._sampler = Sampler(plan.max_num_seqs, config.vocab_size, device, self._staging.upload)
        self._grammar_masks = GrammarMaskRing((plan.max_num_seqs, config.vocab_size), RING, device)
        self._outputs = OutputCopies(device, plan.max_num_seqs)
        self._prompts = PromptReader(model.logits, plan.max_num_seqs, self._staging.upload)
        self._kv_dtype = kv_dtype
        attention_plan, self._workspace = ops.make_attention_buffers(
            plan.max_num_seqs,
            plan.max_num_batched_tokens,
            plan.max_model_len,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            kv_dtype,
            device,
        )
        # Layers of one window share a plan; all layers share the workspace, since they run one after another.
        self._attention_plans = {window: torch.empty_like(attention_plan) for window in config.windows}
        # One for all passes: a captured pass with logits of its own would keep them for ever.
        self._logits = torch.empty((plan.max_num_seqs, config.vocab_size), dtype=torch.float32, device=device)
        self.product_times: list[tuple[int, float]] = []  # of a GPU (warm_up)
        self._graphs = make_graph_pass(device.type, plan.max_num_seqs, plan.max_num_batched_tokens, enforce_eager)
        self._eager = EagerPass()

    @torch.inference_mode()
    def warm_up(self) -> int:
        """Capture the passes that should be ready before the first request; returns how many. On a GPU, also time the
        products of the layers.
        """
        if self._logits.is_cuda:
            self.product_times = self._time_products()
            self._graphs.prefer(self.product_times)
        return self._graphs.capture_ahead(self._idle_batch, self._forward)

    @torch.inference_mode()
    def forward(self, step: StepInput) -> Pass:
        """Issue the pass up to its logits."""
        self._staging.begin()
        passes = self._eager if step.reads else self._graphs
        num_seqs, num_tokens = len(step.rows), step.num_tokens
        size = passes.padded_size(PassSize(num_seqs, num_tokens, decodes=num_seqs == num_tokens))
        self.host_arena.swap(step)
        if len(step.copies):
            ops.copy_blocks(self._arena.view(1, self._plan.num_blocks, -1), self._staging.upload(step.copies))
        self._sampler.assign(step.new_rows)
        batch = self._state.apply(step, size)
        if step.reads:
            return self._forward_and_read(step, batch)
        return Pass(step, batch, passes.run(batch, self._forward))

    def grammar_masks(self, indices: np.ndarray) -> GrammarMasks:
        """Masks of these batch rows for ``sample``, to be filled."""
        return self._grammar_masks.take(indices)

    @torch.inference_mode()
    def sample(self, issued: Pass, grammar: GrammarMasks | None = None) -> PendingOutput:
        """Issue the draw of a pass; its result is waited for by whoever needs it.

        Apart from ``forward``, so that masks may be worked out while the pass runs.
        """
        # The token after n tokens has position n: the draw depends on it, not on the step or the batch.
        step, batch = issued.step, issued.batch
        sampled = self._sampler.sample(issued.logits, batch.sample_rows, batch.seq_lens, _sampling_step(step), grammar)
        self._state.store_tokens(batch, sampled.token_ids)
        return self._outputs.start(step, sampled, issued.read)

    def _time_products(self) -> list[tuple[int, float]]:
        """(tokens, seconds of all layers' products). They are also ready then: a first step that chose algorithms and
        loaded kernels took 40 ms instead of 15. The largest come first, so that the GPU never waits for the host.
        """
        sizes = _step_sizes(self._plan.max_num_batched_tokens)
        events = {}
        for _ in ("makes them ready", "is timed"):
            for size in reversed(sizes):
                begin, end = events[size] = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                begin.record()
                self._model.try_products(size)
                end.record()
        torch.cuda.synchronize()
        num_layers = self._config.num_layers
        return [(size, num_layers * begin.elapsed_time(end) / 1000) for size, (begin, end) in events.items()]

    def _idle_batch(self, size: PassSize) -> InputBatch:
        if self._logits.is_cuda:
            torch.cuda.synchronize()  # the last one's copy has left the host's buffer
        return self._state.apply(_idle_step(), size)

    def _forward(self, batch: InputBatch) -> Tensor:
        """Logits float32 [num_seqs, vocab_size] of each sequence's last token. Captured: nothing here may depend on
        values.
        """
        output_rows = None if batch.size.decodes else batch.last_indices
        return self._model.logits(self._hidden(batch, output_rows), self._logits[: batch.num_seqs])

    def _forward_and_read(self, step: StepInput, batch: InputBatch) -> Pass:
        hidden = self._hidden(batch, self._prompts.rows(batch.last_indices, step))
        logits = self._model.logits(hidden[: batch.num_seqs], self._logits[: batch.num_seqs])
        return Pass(step, batch, logits, self._prompts.read(hidden[batch.num_seqs :], step.reads))

    def _hidden(self, batch: InputBatch, output_rows: Tensor | None) -> Tensor:
        first, *others = self._config.windows
        context = ForwardContext(
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            attention=self._attention(batch, first),
            kv_caches=self._kv_caches,
            output_rows=output_rows,
            windowed={window: self._attention(batch, window) for window in others},
        )
        return self._model.forward(batch.input_ids, context)

    def _attention(self, batch: InputBatch, window: int) -> AttentionMetadata:
        meta = AttentionMetadata(
            block_tables=self._state.block_tables,
            table_rows=batch.rows,
            query_start=batch.query_start,
            seq_lens=batch.seq_lens,
            num_tokens=batch.num_tokens,
            max_seq_len=self._plan.max_model_len,
            plan=self._attention_plans[window],
            workspace=self._workspace,
        )
        config = self._config
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        ops.attention_plan(meta, *heads, self._plan.block_size, window, self._kv_dtype)
        return meta


def _step_sizes(most: int) -> list[int]:
    """Numbers of tokens, close together where tiles of products differ from size to size; at least two."""
    few, middle = [16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384], [512, 640, 768, 896, 1024, 1280, 1536]
    sizes = [size for size in (*few, *middle, 2048, 3072, 4096) if size < most]
    return [*sizes, most] if sizes else [most, most + 1]


def _sampling_step(step: StepInput) -> SamplingStep:
    return SamplingStep(sampling_rows(step), step.num_computed_tokens + step.num_new_tokens)


def _empty_arena(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return empty_on_huge_pages(math.prod(shape), dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _idle_step() -> StepInput:
    """A step of padding only, for captures."""
    empty = np.zeros(0, np.int32)
    return StepInput(
        -1, empty, empty, empty, empty, empty, empty.astype(bool), empty.reshape(0, 3), empty.reshape(0, 2)
    )
