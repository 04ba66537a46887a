"""A tiny random model and small engines on it: big enough for GQA, several chunks of attention and many blocks, small
enough for seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from pyengine.config import EngineConfig
from pyengine.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 500,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


@pytest.fixture(
    scope="session",
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def backend(request):
    return request.param


@pytest.fixture(scope="session")
def make_engine(tiny_model, backend):
    """Engines on the tiny model; keyword arguments are EngineConfig's."""

    def make(**options):
        settings = {
            "model": tiny_model,
            "load_format": "dummy",
            "device": backend,
            "max_num_seqs": 32,
            "kv_cache_memory": "8MiB",
            "itl_target_ms": 0,  # steps that do not depend on the machine's speed
            **options,
        }
        return Engine.start(EngineConfig(**settings))

    return make
