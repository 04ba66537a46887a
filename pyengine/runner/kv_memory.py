"""The memory plan: how many KV blocks fit, by arithmetic, before a single weight is loaded. No torch.

Everything large is counted from the model's shape and the limits of a step: weights, activations, logits, the
attention's workspace, graph pools. The rest of what the user allows becomes KV blocks. What does not fit is shrunk
with a warning when the user did not ask for it, and refused with the numbers when he did.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyengine.config import EngineConfig, format_bytes, parse_bytes
from pyengine.errors import ConfigError
from pyengine.models.config import DTYPE_BYTES, ModelConfig

MIB = 1 << 20
# What a CUDA context, cuBLASLt and the allocator's rounding take beside the counted buffers.
CUDA_OVERHEAD_BYTES = 600 * MIB
# On a CPU the cache is not the whole machine's purpose: enough for many chats, never more than half of what is free.
CPU_KV_BYTES = 4 << 30
CPU_KV_SHARE = 0.5


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of everything, in bytes and tokens; ``ledger`` names each part of ``total_bytes`` for people."""

    num_blocks: int
    block_size: int
    block_bytes: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    ledger: dict[str, int]
    warnings: tuple[str, ...] = field(default=())

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def max_blocks_per_seq(self) -> int:
        return -(-self.max_model_len // self.block_size)


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    dtype: str,
    device_kind: str,
    total_bytes: int,
    free_bytes: int,
    workspace_bytes: int = 0,
    kv_dtype: str | None = None,
) -> MemoryPlan:
    """Decide the sizes of KV cache and step for ``model`` in ``dtype`` on a device.

    Args:
        total_bytes, free_bytes: of the device now, before anything is loaded.
        workspace_bytes: attention plan and workspace, asked from the kernels.
        kv_dtype: element type of the KV cache; None: ``dtype``.

    Raises:
        ConfigError: it cannot fit, or a flag asks for more than fits; the text has the numbers and the flags.
    """
    limits = _step_limits(config, model, device_kind)
    ledger = {
        "weights": model.weight_bytes(dtype),
        "activations": _activation_bytes(model, dtype, limits.max_num_batched_tokens),
        # Logits and a raw copy in float32, the counts of penalties in 16 bits; sums of pooled states in 64.
        "logits and sampling": limits.max_num_seqs * (model.vocab_size * (4 + 4 + 2) + model.hidden_size * 8),
        "attention workspace": workspace_bytes,
    }
    if device_kind == "cuda":
        ledger["graphs and libraries"] = CUDA_OVERHEAD_BYTES
    block_bytes = model.kv_bytes_per_token(kv_dtype or dtype) * config.block_size
    kv_bytes = _kv_bytes(config, ledger, device_kind, total_bytes, free_bytes)
    num_blocks = kv_bytes // block_bytes
    max_model_len, warnings = _context_length(config, model, num_blocks, kv_bytes)
    ledger["KV cache"] = num_blocks * block_bytes
    return MemoryPlan(
        num_blocks,
        config.block_size,
        block_bytes,
        max_model_len,
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        ledger,
        warnings,
    )


@dataclass(frozen=True)
class _StepLimits:
    max_num_seqs: int
    max_num_batched_tokens: int


def _step_limits(config: EngineConfig, model: ModelConfig, device_kind: str) -> _StepLimits:
    on_gpu = device_kind == "cuda"
    max_num_seqs = config.max_num_seqs or (256 if on_gpu else 64)
    tokens = config.max_num_batched_tokens or max(8192 if on_gpu else 1024, max_num_seqs)
    if tokens < max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {tokens} is less than --max-num-seqs {max_num_seqs}: a step could "
            "not give every sequence its token"
        )
    return _StepLimits(max_num_seqs, tokens)


def _activation_bytes(model: ModelConfig, dtype: str, num_tokens: int) -> int:
    """The widest moment of a layer: residual, normed input, attention's qkv and output, the MLP's inputs and output."""
    width = 3 * model.hidden_size + 2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size
    return num_tokens * width * DTYPE_BYTES[dtype]


def _kv_bytes(config: EngineConfig, ledger: dict[str, int], device_kind: str, total_bytes: int, free_bytes: int) -> int:
    fixed = sum(ledger.values())
    if device_kind == "cuda":
        allowed = min(int(total_bytes * config.gpu_memory_utilization), free_bytes)
        rest = int(total_bytes * config.gpu_memory_utilization) - (total_bytes - free_bytes) - fixed
        limit_text = (
            f"--gpu-memory-utilization {config.gpu_memory_utilization:g} of {format_bytes(total_bytes)}, "
            f"of which {format_bytes(free_bytes)} are free"
        )
    else:
        allowed = free_bytes
        rest = min(CPU_KV_BYTES, int((free_bytes - fixed) * CPU_KV_SHARE))
        limit_text = f"{format_bytes(free_bytes)} of memory available"
    if config.kv_cache_memory is not None:
        rest = parse_bytes(config.kv_cache_memory)
        if fixed + rest > allowed:
            raise ConfigError(
                f"--kv-cache-memory {config.kv_cache_memory} does not fit: {_sum_text(ledger)} are needed besides, "
                f"with {limit_text}"
            )
    if rest <= 0:
        raise ConfigError(
            f"no memory is left for the KV cache: {_sum_text(ledger)}, with {limit_text}; lower "
            "--max-num-batched-tokens or --max-num-seqs, or take a smaller model"
        )
    return rest


def _sum_text(ledger: dict[str, int]) -> str:
    parts = " + ".join(f"{name} {format_bytes(size)}" for name, size in ledger.items() if size)
    return f"{parts} = {format_bytes(sum(ledger.values()))}"


def _context_length(
    config: EngineConfig, model: ModelConfig, num_blocks: int, kv_bytes: int
) -> tuple[int, tuple[str, ...]]:
    """The longest sequence: what was asked for, else the model's limit, shrunk to the cache."""
    num_slots = num_blocks * config.block_size
    wanted = config.max_model_len or model.max_position
    if wanted > model.max_position:
        raise ConfigError(f"--max-model-len {wanted} is beyond the model's {model.max_position} positions")
    if wanted <= num_slots:
        return wanted, ()
    text = f"the KV cache of {format_bytes(kv_bytes)} holds {num_slots} tokens, less than a context of {wanted}"
    if config.max_model_len or num_slots < 2:
        raise ConfigError(f"{text}; raise --kv-cache-memory or --gpu-memory-utilization, or lower --max-model-len")
    return num_slots, (f"{text}: --max-model-len is {num_slots} now",)
