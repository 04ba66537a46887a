"""Placing of weights: names and shapes are checked first, every part lands where it belongs, progress adds up."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun, load, make_hf, random_sequences, save_hf

from pyengine.errors import ModelError
from pyengine.layers.host_memory import empty_on_huge_pages
from pyengine.models.config import load_model_config
from pyengine.models.weights import loader
from pyengine.models.weights.loader import load_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def checkpoint(tmp_path):
    return save_hf(make_hf("llama"), tmp_path)


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_tensors(checkpoint):
    edit(checkpoint, lambda tensors: tensors.pop(UP))
    with pytest.raises(ModelError, match=f"tensor {UP} is missing"):
        load(checkpoint)
    edit(
        checkpoint,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "q_proj" in name or "k_proj" in name],
    )
    with pytest.raises(ModelError, match=r"tensors model.layers.0.self_attn.q_proj.weight, .* and 4 more are missing"):
        load(checkpoint)


def test_unexpected_tensors(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load(checkpoint)  # a table that old checkpoints carry
    edit(checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor .*q_proj\.bias is not part of LlamaForCausalLM"):
        load(checkpoint)


def test_wrong_shapes(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()}))
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: tensor {UP} has shape \[64, 96\], .* expects \[96, 64\]"
    ):
        load(checkpoint)


def test_names_are_checked_before_any_tensor_is_read(checkpoint, monkeypatch):
    edit(checkpoint, lambda tensors: tensors.pop("model.norm.weight"))
    monkeypatch.setattr(loader, "_read", lambda *_: pytest.fail("tensors were read"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        load(checkpoint)


def test_tied_checkpoints_may_carry_a_head(tmp_path):
    hf = make_hf("llama", tie_word_embeddings=True)
    plain = save_hf(hf, tmp_path)
    sequences = random_sequences([9])
    expected = PagedRun(load(plain), sequences).whole()[0]
    edit(
        plain,
        lambda tensors: tensors.update({"lm_head.weight": torch.zeros_like(tensors["model.embed_tokens.weight"])}),
    )
    model = load(plain)
    assert model.lm_head is model.embed
    torch.testing.assert_close(PagedRun(model, sequences).whole()[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_element_types_are_converted(dtype, tmp_path):
    hf = make_hf("qwen2")
    sequences = random_sequences([9])
    expected = PagedRun(load(save_hf(hf.to(dtype), tmp_path / "low")), sequences).whole()[0]
    rounded = save_hf(hf.to(dtype).float(), tmp_path / "rounded")
    torch.testing.assert_close(PagedRun(load(rounded), sequences).whole()[0], expected, atol=0, rtol=0)


def test_heads_that_share_a_panel_of_the_packed_layout(tmp_path):
    """8 + 8 + 8 rows of k and v beside 32 of q: parts that do not begin at a multiple of 16 rows."""
    overrides = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 1}
    hf = make_hf("qwen2", **overrides)
    model = load(save_hf(hf, tmp_path))
    sequences = random_sequences([9])
    with torch.no_grad():
        expected = hf(torch.tensor(sequences)).logits[0]
    torch.testing.assert_close(PagedRun(model, sequences).whole()[0], expected, atol=2e-4, rtol=2e-4)


def test_progress_reaches_the_total(checkpoint):
    seen = []
    load(checkpoint, progress=lambda text, done, total: seen.append((done, total)))
    total = (checkpoint / "model.safetensors").stat().st_size
    dones = [done for done, _ in seen]
    assert dones == sorted(dones) and seen[-1][0] == seen[-1][1]
    assert 0 <= total - seen[-1][1] < 16384, "all but the header"


def test_dummy_weights_need_only_a_config(checkpoint):
    config = load_model_config(checkpoint)
    a, b, c = (load_model("/nowhere", config, "bfloat16", "cpu", dummy_seed=seed) for seed in (1, 1, 2))
    sequences = random_sequences([30])
    logits = [PagedRun(model, sequences).whole()[0] for model in (a, b, c)]
    torch.testing.assert_close(logits[0], logits[1], atol=0, rtol=0)
    assert not torch.equal(logits[0], logits[2])
    assert 1.0 < logits[0].std() < 4.0, "logits neither flat nor saturated"
    assert len(set(logits[0].argmax(dim=-1).tolist())) > 5, "greedy tokens differ from place to place"


def test_matrices_lie_side_by_side_on_huge_pages(checkpoint):
    """In the order of a pass; the copy of another tensor's bytes would show in the logits of every other test."""
    model = load(checkpoint)
    matrices = [p for p in model.parameters(model.config) if p.num_cols is not None]
    data = [model.weights[p.name].data for p in matrices]
    assert data[0].data_ptr() % 2**21 == 0
    for before, after in pairwise(data):
        assert after.data_ptr() == before.data_ptr() + before.numel() * before.element_size()


def test_host_memory_outlives_its_maker():
    tensor = empty_on_huge_pages(3 * 2**20, torch.float32)[5:].view(-1)
    assert tensor.shape == (3 * 2**20 - 5,) and not tensor.any()
    tensor.fill_(2)
    assert tensor.sum() == 2 * tensor.numel()
    assert empty_on_huge_pages(0, torch.bfloat16).shape == (0,)


def test_a_shorter_context_makes_a_shorter_table(checkpoint):
    config = dataclasses.replace(load_model_config(checkpoint), max_position=32)
    model = load_model(checkpoint, config, "float32", "cpu")
    assert model.cos_sin.shape == (32, 16)
    sequences = random_sequences([32])
    expected = PagedRun(load(checkpoint), sequences).whole()[0]
    torch.testing.assert_close(PagedRun(model, sequences).whole()[0], expected, atol=0, rtol=0)
