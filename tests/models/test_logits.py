"""Logits of every architecture against transformers on the same random weights, through a paged cache."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import BLOCK_SIZE, PagedRun, hf_logits, load, make_hf, random_sequences, save_hf

LENS = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 3]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
WINDOWED_LAYERS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama without GQA": ("llama", {"num_key_value_heads": 4}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}),
    "llama yarn rope": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 windowed layers": ("qwen2", WINDOWED_LAYERS),
    "qwen3": ("qwen3", {}),
    "qwen3 wide heads": ("qwen3", {"head_dim": 40, "num_attention_heads": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_match_transformers(case, tmp_path):
    family, overrides = CASES[case]
    hf = make_hf(family, **overrides)
    model = load(save_hf(hf, tmp_path))
    sequences = random_sequences(LENS)
    for expected, whole in zip(hf_logits(hf, sequences), PagedRun(model, sequences).whole(), strict=True):
        assert expected.std() > 0.3, "logits too flat to tell anything"
        torch.testing.assert_close(whole, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prefill_in_any_pieces_gives_the_same_bits(family, dtype, tmp_path):
    window = {"mistral": {"sliding_window": 7}, "qwen2": WINDOWED_LAYERS}.get(family, {})
    model = load(save_hf(make_hf(family, **window), tmp_path), dtype)
    sequences = random_sequences(LENS)
    whole = PagedRun(model, sequences, seed=1).whole()
    for sizes in ([1], [5, 1, 17]):
        pieces = PagedRun(model, sequences, seed=2).in_steps(sizes)
        for a, b in zip(whole, pieces, strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0)
    alone = [PagedRun(model, [s], seed=3).whole()[0] for s in sequences]
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("case", ["llama", "mistral window", "qwen2", "qwen3"])
def test_bfloat16_is_no_worse_than_twice_plain_torch(case, tmp_path):
    family, overrides = CASES[case]
    hf = make_hf(family, **overrides)
    model = load(save_hf(hf, tmp_path, torch.bfloat16), "bfloat16")
    low = copy.deepcopy(hf).to(torch.bfloat16)
    high = copy.deepcopy(low).float()  # the same rounded weights, computed exactly
    sequences = random_sequences(LENS)
    ours, plain, exact = PagedRun(model, sequences).whole(), hf_logits(low, sequences), hf_logits(high, sequences)
    ours, plain, exact = torch.cat(ours), torch.cat(plain), torch.cat(exact)
    floor = 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + floor
    assert (ours - exact).square().mean().sqrt() <= 2 * (plain - exact).square().mean().sqrt()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama", "mistral window", "qwen2 windowed layers", "qwen3"])
def test_on_the_gpu(case, dtype, tmp_path):
    """The tolerance rule again, and the same bits for whole prompts, pieces, and sequences alone."""
    family, overrides = CASES[case]
    hf = make_hf(family, **{**overrides, "head_dim": 128 if family == "qwen3" else 64})
    model = load(save_hf(hf, tmp_path, getattr(torch, dtype)), dtype, "cuda")
    low = copy.deepcopy(hf).to(getattr(torch, dtype))
    sequences = random_sequences(LENS)
    whole = PagedRun(model, sequences, seed=1).whole()
    exact = hf_logits(copy.deepcopy(low).float(), sequences)
    error, plain_error = (
        torch.cat(logits) - torch.cat(exact) for logits in (whole, hf_logits(low.to("cuda"), sequences))
    )
    floor = 4 * torch.finfo(low.dtype).eps * torch.cat(exact).abs().max()
    assert error.abs().max() <= 2 * plain_error.abs().max() + floor
    pieces = PagedRun(model, sequences, seed=2).in_steps([5, 1, 17])
    alone = [PagedRun(model, [s], seed=3).whole()[0] for s in sequences]
    for a, b, c in zip(whole, pieces, alone, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
        torch.testing.assert_close(a, c, atol=0, rtol=0)


def test_output_rows_are_the_same_rows(tmp_path):
    model = load(save_hf(make_hf("llama"), tmp_path), "bfloat16")
    sequences = random_sequences(LENS)
    rows = [0, 3, sum(LENS) - 1, 3]
    everything = PagedRun(model, sequences).step(LENS)
    some = PagedRun(model, sequences).step(LENS, output_rows=rows)
    torch.testing.assert_close(some, everything[rows], atol=0, rtol=0)


def test_weights_can_be_enumerated_by_name(tmp_path):
    model = load(save_hf(make_hf("qwen3"), tmp_path))
    assert set(model.weights) == {p.name for p in model.parameters(model.config)}
    assert {"embed", "lm_head", "final_norm", "layers.0.qkv", "layers.2.q_norm"} <= set(model.weights)
    num_elements = sum(p.num_rows * (p.num_cols or 1) for p in model.parameters(model.config))
    assert num_elements == model.config.num_parameters
