"""Pieces of files at their places: every element type, several pieces a tensor, errors that name the file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_hf, save_hf

from pyengine.errors import ModelError
from pyengine.models.config import load_model_config
from pyengine.models.decoder import Decoder
from pyengine.models.weights import loader, upload
from pyengine.models.weights.safetensors import SafetensorsSource
from pyengine.ops import PackedWeight

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many pieces a tensor, the last of them not whole."""
    monkeypatch.setattr(upload, "PIECE_BYTES", 1000)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_places_hold_what_load_gives(stored, wanted, device, tmp_path):
    tensors = {f"t{i}": torch.randn(shape).to(stored) for i, shape in enumerate([(3,), (37, 64), (501, 8), (1, 250)])}
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    whole = torch.full((600, 64), torch.nan, dtype=wanted, device=device)
    places = {
        name: whole[100 * i :].view(-1)[: tensor.numel()].view(tensor.shape)
        for i, (name, tensor) in enumerate(tensors.items())
    }
    jobs = [(source.file_bytes(name), place) for name, place in places.items()]
    num_bytes = sum(upload.upload(jobs, torch.device(device)))
    assert num_bytes == sum(source.num_bytes(name) for name in tensors)
    for name, place in places.items():
        assert torch.equal(place.cpu(), source.load(name, wanted, CPU))
    assert int(whole.isnan().sum()) == whole.numel() - sum(tensor.numel() for tensor in tensors.values())


def test_a_graph_is_placed_as_the_other_way(tmp_path):
    """Fused projections, biases, norms: the rows of every parameter, with nothing packed, as on a GPU."""
    folder = save_hf(make_hf("qwen2"), tmp_path)
    config = load_model_config(folder)
    parameters = Decoder.parameters(config)
    source = SafetensorsSource(folder)
    placed = {
        p.name: PackedWeight(torch.empty(p.num_rows, p.num_cols), p.num_rows, p.num_cols)
        for p in parameters
        if p.num_cols is not None
    }
    in_files = {name: source.file_bytes(name) for p in parameters for name, _ in p.parts}
    for _ in upload.upload(loader._jobs(in_files, parameters, placed, torch.float32, CPU), CPU):
        pass
    for p in parameters:
        expected = torch.cat([source.load(name, torch.float32, CPU) for name, _ in p.parts])
        place = placed[p.name]
        assert torch.equal(place if p.num_cols is None else place.data, expected), p.name


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_the_loader_uploads(device, tmp_path):
    folder = save_hf(make_hf("qwen2").bfloat16(), tmp_path)
    config = load_model_config(folder)
    seen = []
    model = loader.load_model(folder, config, "bfloat16", device, lambda _, done, total: seen.append((done, total)))
    source = SafetensorsSource(folder)
    for p in Decoder.parameters(config):
        expected = torch.cat([source.load(name, torch.bfloat16, CPU) for name, _ in p.parts])
        place = model.weights[p.name]
        assert torch.equal((place if p.num_cols is None else place.data).cpu(), expected), p.name
    assert seen[-1][0] == seen[-1][1] and len(seen) > 50


def test_a_file_that_shrinks(tmp_path):
    save_file({"a": torch.randn(100, 100)}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    job = (source.file_bytes("a"), torch.empty(100, 100))
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(20_000)
    with pytest.raises(ModelError, match=r"model\.safetensors: ended at byte 20000 while"):
        list(upload.upload([job], CPU))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: No such file"):
        list(upload.upload([job], CPU))


def test_a_type_that_is_not_supported(tmp_path):
    save_file({"a": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="tensor a is I8; only F32, F16, BF16"):
        SafetensorsSource(tmp_path).file_bytes("a")
