"""Tiny random checkpoints made by transformers, and a runner that drives a graph through a shuffled paged cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from pyengine import ops
from pyengine.layers.context import ForwardContext
from pyengine.models.config import load_model_config
from pyengine.models.weights.loader import load_model

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.25,  # large enough that attention and MLP matter beside the residual
}
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
BLOCK_SIZE = 16


def make_hf(family: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random float32 model of a family, its norms and biases random too, so that a dropped one shows."""
    torch.manual_seed(seed)
    config = CONFIGS[family](**{**SIZES, **overrides})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)
    return model


def save_hf(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32, **kwargs: object) -> Path:
    model.to(dtype).save_pretrained(folder, **kwargs)
    model.float()
    return folder


def load(folder: Path, dtype: str = "float32", device: str = "cpu", **kwargs: object):
    return load_model(folder, load_model_config(folder), dtype, device, **kwargs)


class PagedRun:
    """Sequences with their cache blocks handed out in random order from a poisoned pool."""

    def __init__(
        self, model, sequences: Iterable[Iterable[int]], seed: int = 0, kv_dtype: torch.dtype | None = None
    ) -> None:
        self.model, config = model, model.config
        self.sequences = [list(s) for s in sequences]
        self.num_computed = [0] * len(self.sequences)
        max_blocks = max(-(-len(s) // BLOCK_SIZE) for s in self.sequences)
        generator = torch.Generator().manual_seed(seed)
        num_blocks = max_blocks * len(self.sequences) + 3
        order = torch.randperm(num_blocks, generator=generator)[: max_blocks * len(self.sequences)]
        self.block_tables = order.view(len(self.sequences), max_blocks).to(torch.int32)
        shape = (num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        self.device = model.first_norm.device
        self.kv_dtype = kv_dtype or model.first_norm.dtype
        self.block_tables = self.block_tables.to(self.device)
        poison = torch.full((config.num_layers, 2, *shape), torch.nan, dtype=self.kv_dtype, device=self.device)
        self.kv_caches = tuple((k, v) for k, v in poison)

    def step(self, num_new: list[int], output_rows: list[int] | None = None) -> torch.Tensor:
        """Computes the next ``num_new[s]`` tokens of each sequence; float32 logits of every (or the wanted) row."""
        ids, positions, slots, query_start = [], [], [], [0]
        for index, count in enumerate(num_new):
            begin = self.num_computed[index]
            for position in range(begin, begin + count):
                block = int(self.block_tables[index, position // BLOCK_SIZE])
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
                positions.append(position)
            ids += self.sequences[index][begin : begin + count]
            query_start.append(len(ids))
            self.num_computed[index] += count
        first, *others = self.model.config.windows
        context = ForwardContext(
            positions=self._int32(positions),
            slot_mapping=torch.tensor(slots, device=self.device),
            attention=self._attention(query_start, first),
            kv_caches=self.kv_caches,
            output_rows=None if output_rows is None else self._int32(output_rows),
            windowed={window: self._attention(query_start, window) for window in others},
        )
        return self.model.logits(self.model.forward(self._int32(ids), context)).cpu()

    def _attention(self, query_start: list[int], window: int) -> ops.AttentionMetadata:
        config, num_seqs, num_tokens, max_seq_len = (
            self.model.config,
            len(query_start) - 1,
            query_start[-1],
            max(self.num_computed),
        )
        heads, dtype = (config.num_heads, config.num_kv_heads, config.head_dim), self.kv_dtype
        plan, workspace = ops.make_attention_buffers(num_seqs, num_tokens, max_seq_len, *heads, dtype, self.device)
        seq_lens = self._int32(self.num_computed)
        meta = ops.AttentionMetadata(
            self.block_tables, None, self._int32(query_start), seq_lens, num_tokens, max_seq_len, plan, workspace
        )
        ops.attention_plan(meta, *heads, BLOCK_SIZE, window, dtype)
        return meta

    def _int32(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def whole(self) -> list[torch.Tensor]:
        """Logits [len, vocab] of each sequence, all computed in one step."""
        lens = [len(s) for s in self.sequences]
        return list(self.step(lens).split(lens))

    def in_steps(self, sizes: Iterable[int]) -> list[torch.Tensor]:
        """The same, sequence s taking min(size, rest) tokens per step, sizes repeating."""
        out: list[list[torch.Tensor]] = [[] for _ in self.sequences]
        sizes = list(sizes)
        step = 0
        while any(done < len(s) for done, s in zip(self.num_computed, self.sequences, strict=True)):
            pairs = zip(self.num_computed, self.sequences, strict=True)
            num_new = [min(sizes[(step + i) % len(sizes)], len(s) - done) for i, (done, s) in enumerate(pairs)]
            for parts, logits in zip(out, self.step(num_new).split(num_new), strict=True):
                parts.append(logits)
            step += 1
        return [torch.cat(parts) for parts in out]


def hf_logits(model: PreTrainedModel, sequences: Iterable[Iterable[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([list(s)], device=model.device)).logits[0].float().cpu() for s in sequences]


def random_sequences(lens: Iterable[int], vocab_size: int = SIZES["vocab_size"], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lens]
