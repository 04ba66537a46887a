"""Configuration: frozen dataclasses whose fields are also the command-line options.

``EngineConfig`` is what a user asked for. It is built once, by the command line or ``LLM``, sent as JSON to the engine
process, and resolved there against the model and the machine into a new object. Facts learnt at run time (number of
blocks, ...) travel in ``protocol.Ready``, never in here. Each field's metadata holds the help text that ``--help``
shows; nothing in here imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from pyengine.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m"


def option(default: object, help: str, **extra: object):
    """A config field with its command-line help; ``choices`` and ``metavar`` go into the metadata."""
    return field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything the engine needs to start. Sizes in tokens unless named otherwise; None means: work it out."""

    model: str = option(
        DEFAULT_MODEL, "folder with config.json and safetensors, a .gguf file, a hub id, or smollm2-135m"
    )
    tokenizer: str | None = option(None, "tokenizer folder or file, when it is not with the model")
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    load_format: str = option(
        "auto",
        "auto: by what the model path holds; dummy: random weights (only config.json is read)",
        choices=("auto", "dummy"),
    )
    dtype: str = option(
        "auto",
        "element type of weights and KV cache; auto: the checkpoint's own (fp16 becomes bfloat16 on the CPU)",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    kv_cache_dtype: str = option(
        "auto",
        "element type of the KV cache; auto: that of the weights; fp8 (or fp8_e4m3): 8 bits, which hold twice the "
        "tokens and cost some accuracy, with the checkpoint's k_scale and v_scale where it has them, else 1",
        choices=("auto", "fp8", "fp8_e4m3"),
    )
    device: str = option(
        "auto", "auto: cuda when a GPU and its kernels are there, else cpu", choices=("auto", "cuda", "cpu")
    )
    seed: int = option(0, "seed of dummy weights")
    max_model_len: int | None = option(
        None,
        "prompt and output tokens of one sequence at most; default: the model's own limit, "
        "shrunk with a warning to what the KV cache holds",
    )
    block_size: int = option(16, "tokens per KV block", choices=(16, 32, 64, 128, 256))
    gpu_memory_utilization: float = option(0.92, "share of the GPU's memory that pyengine may fill, in (0, 1]")
    kv_cache_memory: str | None = option(
        None, "bytes for the KV cache (4GiB, 500MB, ...), instead of what the utilization leaves"
    )
    max_num_seqs: int | None = option(None, "sequences computed together; default 256 on a GPU, 64 on a CPU")
    max_num_batched_tokens: int | None = option(
        None, "tokens computed in one step; default 8192 on a GPU, 1024 on a CPU"
    )
    itl_target_ms: float = option(
        16.0,
        "milliseconds between a stream's tokens to aim at: prompts beside running streams are computed in pieces that "
        "keep to it, as far as the streams alone leave time (at least half of a step is for prompts), and to 2.5 times "
        "it where many prompt tokens wait; "
        "0: never cut prompts for it (the default of LLM)",
    )
    max_queued_requests: int = option(
        2048, "sequences that may wait for their first step (each of n counts); beyond it a request gets a 429"
    )
    max_queued_tokens: int = option(
        2 << 20, "prompt tokens that may wait for their first step; beyond it a request gets a 429"
    )
    cpu_cache_gb: float = option(
        0.0, "GiB of (pinned) host memory for blocks that the prefix cache on the device has no room for"
    )
    prefix_caching: bool = option(True, "reuse KV blocks of equal prompt prefixes")
    enforce_eager: bool = option(False, "never capture a step as a graph (slower; for debugging)")
    async_scheduling: bool = option(True, "schedule the next step while the GPU runs this one")
    num_threads: int | None = option(None, "CPU threads of the CPU backend; default: all cores this process may use")

    def __post_init__(self) -> None:
        _check_positive(self, "max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_threads")
        _check_positive(self, "max_queued_requests", "max_queued_tokens")
        if not 0.0 <= self.cpu_cache_gb < float("inf"):
            raise ConfigError(f"--cpu-cache-gb must be at least 0, got {self.cpu_cache_gb}")
        if self.cpu_cache_gb and not self.prefix_caching:
            raise ConfigError("--cpu-cache-gb is a part of the prefix cache, which --no-prefix-caching switches off")
        if not 0.0 <= self.itl_target_ms < float("inf"):
            raise ConfigError(f"--itl-target-ms must be at least 0, got {self.itl_target_ms}")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(f"--gpu-memory-utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        for spec in dataclasses.fields(self):
            choices = spec.metadata.get("choices")
            if choices and getattr(self, spec.name) not in choices:
                flag = "--" + spec.name.replace("_", "-")
                raise ConfigError(
                    f"{flag} must be one of {', '.join(map(str, choices))}, got {getattr(self, spec.name)!r}"
                )
        if self.kv_cache_memory is not None:
            parse_bytes(self.kv_cache_memory)

    def replace(self, **changes: object) -> EngineConfig:
        return dataclasses.replace(self, **changes)


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str) -> int:
    """``"4GiB"``, ``"500MB"``, ``"1073741824"`` as a number of bytes; raises ConfigError on anything else."""
    stripped = text.strip().lower()
    number = stripped.rstrip("bkmgti")
    unit = stripped[len(number) :]
    try:
        value = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ConfigError(f"expected a size such as 4GiB, 500MB or 1073741824 bytes, got {text!r}") from None
    if value <= 0:
        raise ConfigError(f"a size must be positive, got {text!r}")
    return value


def format_bytes(num_bytes: int) -> str:
    """``1536`` as ``"1.5 KiB"``."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
