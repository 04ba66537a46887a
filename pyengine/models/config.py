"""What a model is, in numbers: read from config.json or from GGUF metadata, checked, and frozen. No torch.

The memory planner, the server and the graphs all read this one object. Whatever a checkpoint asks for that the graphs
would not
compute is refused here, by name, before a weight is touched: a model that runs is the model that was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyengine.errors import ConfigError, ModelError
from pyengine.layers.rotary import RopeParameters

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
FP8 = "float8_e4m3fn"  # torch's name of what --kv-cache-dtype fp8 is
KV_DTYPE_BYTES = {**DTYPE_BYTES, FP8: 1}
FP8_HEAD_DIMS_ON_CUDA = (64, 128)

MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_HEADS = 2**16, 2**20, 1024, 1024
MAX_VOCAB, MAX_POSITION, MAX_HEAD_DIM = 2**22, 2**25, 256
WIDTH_MULTIPLE = 32  # dense layers stream their inputs in groups of 32 elements


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. Every instance satisfies what the ops require (checked on construction).

    Attributes:
        architecture: the registry's name.
        max_position: tokens of context that the position embedding was made for.
        layer_windows: [num_layers] sliding window in tokens; 0: none.
        dtype: the element type of the checkpoint: bfloat16, float16 or float32.
        eos_token_ids: any of them ends a generation.
        source: the file, for messages.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope: RopeParameters
    layer_windows: tuple[int, ...]
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    source: str = "model"

    def __post_init__(self) -> None:
        self._require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}",
        )
        self._require(
            8 <= self.head_dim <= MAX_HEAD_DIM and self.head_dim % 8 == 0,
            f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {self.head_dim}",
        )
        for name, width in (
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_heads * head_dim", self.num_heads * self.head_dim),
        ):
            self._require(
                width > 0 and width % WIDTH_MULTIPLE == 0, f"{name} must be a multiple of {WIDTH_MULTIPLE}, got {width}"
            )
        self._require(
            0 < self.rope.rotary_dim <= self.head_dim and self.rope.rotary_dim % 2 == 0,
            f"rotary_dim must be even and at most head_dim {self.head_dim}, got {self.rope.rotary_dim}",
        )
        self._require(len(self.layer_windows) == self.num_layers, "layer_windows must name every layer")
        self._require(self.dtype in DTYPE_BYTES, f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {self.dtype!r}")

    def _require(self, condition: bool, text: str) -> None:
        if not condition:
            raise ModelError(f"{self.source}: {text}")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows in order of first use: attention is planned once for each."""
        return tuple(dict.fromkeys(self.layer_windows))

    @property
    def num_parameters(self) -> int:
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        biases = self.q_size + 2 * self.kv_size if self.qkv_bias else 0
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + biases + norms + 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all weights held in ``dtype``, the rotary table (float32 [max_position, rotary_dim]) included."""
        return self.num_parameters * DTYPE_BYTES[dtype] + self.max_position * self.rope.rotary_dim * 4

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Bytes of K and V over all layers."""
        return 2 * self.num_layers * self.kv_size * KV_DTYPE_BYTES[kv_dtype]


def load_model_config(path: str | Path) -> ModelConfig:
    """The configuration of a model folder (its config.json) or of a .gguf file. Raises ModelError."""
    from pyengine.models import gguf_config, hf_config

    path = Path(path)
    if path.is_dir():
        return hf_config.read_folder(path)
    if path.is_file():
        return gguf_config.read_file(path)
    raise ModelError(f"{path} is neither a model folder nor a .gguf file")


def resolve_dtype(requested: str, config: ModelConfig, device: str) -> tuple[str, str | None]:
    """The element type to compute in, and a note for the log when it is not the checkpoint's own.

    ``requested`` is --dtype, ``device`` is "cpu" or "cuda". Raises ConfigError for a type that the device's kernels do
    not have.
    """
    available = ("bfloat16", "float32") if device == "cpu" else ("bfloat16", "float16")
    if requested != "auto":
        if requested not in available:
            raise ConfigError(f"--dtype {requested} does not work on {device} (have {', '.join(available)})")
        return requested, None
    if config.dtype in available:
        return config.dtype, None
    return "bfloat16", f"the checkpoint is {config.dtype}; computing in bfloat16 on {device}"


def resolve_kv_dtype(requested: str, dtype: str, config: ModelConfig, device: str) -> str:
    """The element type of the KV cache: ``dtype``, in which the model computes, or FP8.

    ``requested`` is --kv-cache-dtype, ``device`` is "cpu" or "cuda". Raises ConfigError where the device's kernels do
    not read such a cache.
    """
    if requested == "auto":
        return dtype
    if device == "cuda" and config.head_dim not in FP8_HEAD_DIMS_ON_CUDA:
        have = " and ".join(map(str, FP8_HEAD_DIMS_ON_CUDA))
        raise ConfigError(
            f"--kv-cache-dtype {requested} works on cuda with a head_dim of {have}, the model has {config.head_dim}; "
            "leave it at auto"
        )
    if config.head_dim % 16:
        raise ConfigError(
            f"--kv-cache-dtype {requested} needs a head_dim that is a multiple of 16, the model has {config.head_dim}; "
            "leave it at auto"
        )
    return FP8
