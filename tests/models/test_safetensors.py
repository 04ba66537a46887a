"""Safetensors folders: single, sharded, and broken in every way that a download or an attacker can break them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun, load, make_hf, random_sequences, save_hf

from pyengine.errors import ModelError
from pyengine.models.weights.safetensors import SafetensorsSource, read_header

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
CPU = torch.device("cpu")


def write(folder: Path, name: str = "model.safetensors", tensors: dict | None = None) -> Path:
    save_file(tensors or TENSORS, folder / name)
    return folder / name


def rewrite_header(file: Path, change) -> None:
    """``change`` edits the parsed header in place; the data stays."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + size :])


def test_reads_what_was_written(tmp_path):
    write(tmp_path)
    source = SafetensorsSource(tmp_path)
    assert source.shapes == {"a": (2, 3), "b": (4,), "c": (0,)}
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(source.load(name, tensor.dtype, CPU), tensor, rtol=0, atol=0)
    assert source.load("a", torch.bfloat16, CPU).dtype == torch.bfloat16
    assert source.num_bytes("b") == 8 and source.where("b").endswith("model.safetensors")


def test_sharded_equals_single(tmp_path):
    hf = make_hf("llama")
    single, sharded = save_hf(hf, tmp_path / "one"), save_hf(hf, tmp_path / "many", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2 and (sharded / "model.safetensors.index.json").is_file()
    sequences = random_sequences([20])
    a, b = (PagedRun(load(folder), sequences).whole()[0] for folder in (single, sharded))
    torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_several_files_without_an_index(tmp_path):
    write(tmp_path, "one.safetensors", {"a": TENSORS["a"]})
    write(tmp_path, "two.safetensors", {"b": TENSORS["b"]})
    write(tmp_path, "consolidated.safetensors", {"a": TENSORS["a"]})  # the same weights again, in Mistral's own naming
    assert set(SafetensorsSource(tmp_path).shapes) == {"a", "b"}


def test_truncated_file_names_file_and_tensor(tmp_path):
    file = write(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(ModelError, match=r"model\.safetensors: cut off: tensor b ends at byte"):
        SafetensorsSource(tmp_path)
    for length in (0, 7, 8, 20, 8 + int.from_bytes(whole[:8], "little") - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
            SafetensorsSource(tmp_path)


def set_in(name, key, value):
    return lambda header: header[name].__setitem__(key, value)


CORRUPTIONS = {
    "overlap": (set_in("b", "data_offsets", [16, 24]), "tensor b overlaps"),
    "size differs": (set_in("a", "shape", [2, 4]), r"tensor a: F32 \[2, 4\] takes 32 bytes, its offsets span 24"),
    "huge shape": (set_in("a", "shape", [2**40, 2**40]), "tensor a: F32"),
    "negative shape": (set_in("a", "shape", [-2, -3]), "tensor a: shape"),
    "shape of floats": (set_in("a", "shape", [2.0, 3.0]), "tensor a: shape"),
    "shape absent": (lambda header: header["a"].pop("shape"), "tensor a: shape"),
    "many dimensions": (set_in("a", "shape", [1] * 9), "tensor a: shape"),
    "offsets reversed": (set_in("a", "data_offsets", [24, 0]), "tensor a: data_offsets"),
    "offsets of one": (set_in("a", "data_offsets", [0]), "tensor a: data_offsets"),
    "unknown dtype": (set_in("a", "dtype", "F31"), "tensor a: dtype 'F31' is not known"),
    "dtype a list": (set_in("a", "dtype", ["F32"]), "tensor a: dtype"),
    "not an object": (lambda header: header.__setitem__("a", 3), "tensor a: expected an object"),
    "a tensor gone": (lambda header: header.pop("a"), "leaves a gap before it"),
    "bytes left over": (lambda header: header.pop("b"), "8 bytes after the last tensor"),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupt_headers(kind, tmp_path):
    change, text = CORRUPTIONS[kind]
    file = write(tmp_path)
    rewrite_header(file, change)
    with pytest.raises(ModelError, match=text) as error:
        SafetensorsSource(tmp_path)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xff", b"[" * 50_000, b"12"])
def test_headers_that_are_no_headers(header, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        SafetensorsSource(tmp_path)


def test_header_longer_than_the_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="not a safetensors file"):
        SafetensorsSource(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=4))
def test_overwritten_bytes_are_read_or_refused(tmp_path, at, junk):
    file = write(tmp_path)
    raw = bytearray(file.read_bytes())
    at %= len(raw)
    raw[at : at + len(junk)] = junk
    file.write_bytes(raw)
    try:
        read_header(file)
    except ModelError as error:
        assert str(file) in str(error)


def test_index_errors(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    write(tmp_path, "a.safetensors")
    cases = {
        '{"weight_map": {}}': "weight_map is missing or empty",
        '{"weight_map": {"a": "../a.safetensors"}}': "is not the name of a .safetensors file",
        '{"weight_map": {"a": "a.bin"}}': "is not the name of a .safetensors file",
        '{"weight_map": {"a": 3}}': "is not the name of a .safetensors file",
        '{"weight_map": {"a": "b.safetensors"}}': "b.safetensors is missing",
        '{"weight_map": {"z": "a.safetensors"}}': "tensor z is missing, though the index places it there",
    }
    for content, text in cases.items():
        index.write_text(content)
        with pytest.raises(ModelError, match=text):
            SafetensorsSource(tmp_path)


def test_duplicates_and_pickles(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        ModelError, match=r"no \*\.safetensors file; pytorch_model\.bin is a pickle, which is never read"
    ):
        SafetensorsSource(tmp_path)
    write(tmp_path, "one.safetensors")
    write(tmp_path, "two.safetensors")
    with pytest.raises(ModelError, match=r"tensor \w is also in one\.safetensors"):
        SafetensorsSource(tmp_path)


def test_tensors_of_other_types_are_refused_when_they_are_weights(tmp_path):
    hf = make_hf("llama")
    file = save_hf(hf, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, file)
    with pytest.raises(ModelError, match=rf"model\.safetensors: tensor {name} is F8_E4M3; only F32, F16, BF16"):
        load(tmp_path)
