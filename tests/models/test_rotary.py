"""Rotary tables against the functions of transformers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyengine.layers.rotary import RopeParameters, cos_sin_table, inverse_frequencies, yarn_attention_factor
from pyengine.models import hf_config

HEAD_DIM = 64
VARIANTS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn untruncated": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
        "attention_factor": 1.25,
    },
}


def llama_json(**rope: object) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 4 * HEAD_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 8192,
        **rope,
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_tables_match_transformers(variant, spelling):
    settings = dict(VARIANTS[variant])
    if spelling == "rope_scaling":  # theta outside, and the oldest name of the type
        theta = settings.pop("rope_theta")
        ours = llama_json(rope_theta=theta, rope_scaling={**settings, "type": settings["rope_type"]})
        ours["rope_scaling"].pop("rope_type")
        if variant == "default":
            ours.pop("rope_scaling")
    else:
        ours = llama_json(rope_parameters=settings)
    rope = hf_config.parse(ours, "test").rope
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=4 * HEAD_DIM,
            num_attention_heads=4,
            max_position_embeddings=8192,
            rope_parameters=dict(VARIANTS[variant]),
        )
    )
    np.testing.assert_allclose(inverse_frequencies(rope), theirs.inv_freq.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling)
    positions = torch.arange(1000)
    cos, sin = theirs(torch.zeros(1, 1, HEAD_DIM), positions[None])
    table = cos_sin_table(rope, 1000)
    half = HEAD_DIM // 2
    assert table.shape == (1000, HEAD_DIM) and table.dtype == np.float32
    np.testing.assert_allclose(table[:, :half], cos[0, :, :half].numpy(), atol=3e-4)
    np.testing.assert_allclose(table[:, half:], sin[0, :, :half].numpy(), atol=3e-4)


def test_long_tables_are_computed_in_slices():
    rope = RopeParameters(rotary_dim=8)
    table = cos_sin_table(rope, 40000)
    for position in (0, 16383, 16384, 39999):
        angles = position * inverse_frequencies(rope).astype(np.float64)
        np.testing.assert_array_equal(
            table[position], np.concatenate((np.cos(angles), np.sin(angles))).astype(np.float32)
        )


def test_freq_factors_divide():
    plain = RopeParameters(rotary_dim=8)
    factors = (1.0, 2.0, 4.0, 8.0)
    scaled = dataclasses.replace(plain, kind="factors", freq_factors=factors)
    np.testing.assert_allclose(inverse_frequencies(scaled), inverse_frequencies(plain) / np.array(factors), rtol=1e-6)


def test_llama3_as_gguf_factors_is_the_same_rotation():
    """llama.cpp's converter writes Llama 3.1's scaling as divisors; both must agree."""
    llama3 = hf_config.parse(llama_json(rope_parameters=VARIANTS["llama3"]), "test").rope
    plain = dataclasses.replace(llama3, kind="default")
    factors = tuple((inverse_frequencies(plain) / inverse_frequencies(llama3)).tolist())
    same = dataclasses.replace(plain, kind="factors", freq_factors=factors)
    np.testing.assert_allclose(inverse_frequencies(same), inverse_frequencies(llama3), rtol=1e-6)


def test_yarn_does_not_scale_without_stretching():
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(4.0) == pytest.approx(1.138629436)
