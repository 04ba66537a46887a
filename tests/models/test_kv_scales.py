"""Scales of an fp8 KV cache: read from where checkpoints have them, and used on both ways, in and out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun, load, make_hf, random_sequences, save_hf

from pyengine.errors import ModelError

F8 = torch.float8_e4m3fn
K, V = (f"model.layers.1.self_attn.{kind}_scale" for kind in "kv")


@pytest.fixture
def checkpoint(tmp_path):
    return save_hf(make_hf("llama"), tmp_path)


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def logits(model) -> torch.Tensor:
    return torch.cat(PagedRun(model, random_sequences([40, 7]), kv_dtype=F8).whole())


@pytest.mark.parametrize("shape", [(), (1,), (2,)], ids=str)
def test_scales_undo_themselves(checkpoint, shape):
    """A power of two shifts exponents alone, so nothing else changes, but where a number leaves e4m3's range."""
    plain = load(checkpoint, with_kv_scales=True)
    assert not plain.has_kv_scales
    expected = logits(plain)
    edit(checkpoint, lambda tensors: tensors.update({K: torch.full(shape, 0.25), V: torch.full(shape, 0.5)}))
    scaled = load(checkpoint, with_kv_scales=True)
    assert scaled.has_kv_scales and scaled.layers[0].k_scale is None
    assert scaled.layers[1].k_scale.tolist() == [0.25, 0.25] and scaled.layers[1].v_scale.tolist() == [0.5, 0.5]
    torch.testing.assert_close(logits(scaled), expected, atol=0.02, rtol=0.02)


def test_scales_are_for_each_head(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({K: torch.tensor([0.5, 3.0])}))
    assert load(checkpoint, with_kv_scales=True).layers[1].k_scale.tolist() == [0.5, 3.0]


def test_scales_keep_large_values(checkpoint):
    """Values beyond 448 saturate, unless a scale brings them back into the range."""
    name = "model.layers.1.self_attn.v_proj.weight"
    edit(checkpoint, lambda tensors: tensors.update({name: tensors[name] * 3000}))
    truth = torch.cat(PagedRun(load(checkpoint), random_sequences([40, 7])).whole())
    without = (logits(load(checkpoint, with_kv_scales=True)) - truth).abs().mean()
    edit(checkpoint, lambda tensors: tensors.update({V: torch.tensor(100.0)}))
    within = (logits(load(checkpoint, with_kv_scales=True)) - truth).abs().mean()
    assert within < without / 2, (within, without)


def test_a_cache_of_the_model_s_dtype_needs_no_scales(checkpoint):
    sequences = random_sequences([9])
    expected = PagedRun(load(checkpoint), sequences).whole()[0]
    edit(checkpoint, lambda tensors: tensors.update({K: torch.tensor(0.5)}))
    model = load(checkpoint)
    assert not model.has_kv_scales
    torch.testing.assert_close(PagedRun(model, sequences).whole()[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "value, text",
    [
        (torch.ones(3), r"has shape \[3\], expected one number or one for each of 2 kv heads"),
        (torch.tensor(0.0), "must be positive, got"),
        (torch.tensor([1.0, float("nan")]), "must be positive, got"),
    ],
)
def test_bad_scales(checkpoint, value, text):
    edit(checkpoint, lambda tensors: tensors.update({K: value}))
    with pytest.raises(ModelError, match=f"model.safetensors: tensor {K} {text}"):
        load(checkpoint, with_kv_scales=True)


def test_scales_of_layers_that_are_not_there(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({K.replace(".1.", ".3."): torch.tensor(1.0)}))
    with pytest.raises(ModelError, match="not part of LlamaForCausalLM"):
        load(checkpoint)
