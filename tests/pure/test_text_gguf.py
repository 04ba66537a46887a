"""GGUF files as untrusted input: what the gguf library writes is read, everything else is a ModelError."""

from __future__ import annotations

import random
import struct

import gguf
import numpy as np
import pytest
from text_helpers import write_bpe_gguf

from pyengine.errors import ModelError
from pyengine.text.gguf_metadata import open_gguf
from pyengine.text.gguf_tokenizer import tokenizer_from_gguf


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    return write_bpe_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def small(tmp_path, **tensors: np.ndarray) -> bytes:
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_string("name", "Größe")
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("texts", ["a", "", "ü"])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp_path / "small.gguf").read_bytes()


def test_reads_what_the_library_writes(tmp_path):
    tensors = {
        "a": np.arange(64, dtype=np.float32).reshape(2, 32),
        "b": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "c": np.arange(5, dtype=np.int32),
    }
    small(tmp_path, **tensors)
    file = open_gguf(tmp_path / "small.gguf")
    assert file.metadata["llama.block_count"] == 2 and file.metadata["llama.eps"] == 0.5
    assert file.metadata["flag"] is True and file.metadata["name"] == "Größe"
    assert file.metadata["ints"] == [1, -2, 3] and file.metadata["texts"] == ["a", "", "ü"]
    for name, array in tensors.items():
        tensor = file.by_name[name]
        assert tensor.shape == array.shape and np.array_equal(tensor.data, array)
        with pytest.raises(ValueError, match="read-only"):
            tensor.data[...] = 0


def test_quantised_tensors_are_rows_of_bytes(tmp_path):
    values = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    packed = gguf.quants.quantize(values, kind)
    writer.add_tensor("w", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(tmp_path / "q.gguf").by_name["w"]
    assert tensor.shape == (4, 64) and tensor.tensor_type is kind and np.array_equal(tensor.data, packed)
    assert np.abs(gguf.quants.dequantize(tensor.data, kind) - values).max() < 0.05


def test_typed_access_names_the_key(tmp_path):
    small(tmp_path)
    file = open_gguf(tmp_path / "small.gguf")
    assert file.get("llama.block_count", int) == 2 and file.get("absent", int, 7) == 7
    for key, kind in (("name", int), ("flag", int), ("ints", str)):
        with pytest.raises(ModelError, match=f"metadata {key} has an unexpected type"):
            file.get(key, kind)


def test_truncation_anywhere_is_a_model_error(tmp_path):
    data = small(tmp_path, w=np.ones((2, 32), dtype=np.float32))
    path = tmp_path / "cut.gguf"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf: "):
            open_gguf(path)


def header(num_tensors: int = 0, num_keys: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


HUGE = 2**64 - 1
BROKEN = {
    "magic": (b"GGML" + header()[4:], "not a GGUF file"),
    "version": (header(version=1), "version 1 is not supported"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (header(num_tensors=HUGE), f"claims {HUGE} tensors"),
    "key count": (header(num_keys=1 << 40), "metadata keys"),
    "key length": (header(num_keys=1, rest=struct.pack("<Q", HUGE) + b"x" * 8), "claims a text of"),
    "value length": (header(0, 1, rest=text("k") + struct.pack("<IQ", 8, 1 << 25)), "ends inside its header"),
    "array length": (header(0, 1, rest=text("k") + struct.pack("<IIQ", 9, 4, HUGE)), f"claims {HUGE} entries of k"),
    "nested array": (header(0, 1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1)), "array of unsupported type 9"),
    "value type": (header(0, 1, rest=text("k") + struct.pack("<I", 77)), "k has unknown type 77"),
    "bad UTF-8": (header(0, 1, rest=struct.pack("<Q", 8) + b"\xff" * 8), "a metadata key is not valid UTF-8"),
    "key twice": (header(0, 2, rest=(text("k") + struct.pack("<II", 4, 1)) * 2), "'k' occurs twice"),
    "alignment": (
        header(0, 1, rest=text("general.alignment") + struct.pack("<II", 4, 3)),
        "general.alignment must be a power of two",
    ),
    "dimensions": (header(1, rest=text("w") + struct.pack("<I", 5) + b"\0" * 64), "w has 5 dimensions"),
    "zero dimension": (header(1, rest=text("w") + struct.pack("<IQIQ", 1, 0, 0, 0)), "w of type F32 has dimensions"),
    "element type": (header(1, rest=text("w") + struct.pack("<IQIQ", 1, 4, 99, 0)), "w has unknown element type 99"),
    "half a block": (header(1, rest=text("w") + struct.pack("<IQIQ", 1, 33, 8, 0)), "whole blocks of 32"),
    "huge tensor": (header(1, rest=text("w") + struct.pack("<IQQIQ", 2, 1 << 63, 1 << 63, 0, 0)), "tensor w lies at"),
    "offset": (header(1, rest=text("w") + struct.pack("<IQIQ", 1, 1, 0, HUGE)), "tensor w lies at"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers(tmp_path, case):
    data, message = BROKEN[case]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        open_gguf(tmp_path / "m.gguf")


def test_not_a_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be opened"):
        open_gguf(tmp_path / "absent.gguf")


def test_random_damage_is_found_or_harmless(tmp_path, good):
    """Flipped bytes give a ModelError or a file that can still be used; nothing else may escape."""
    rng, path, refused = random.Random(5), tmp_path / "damaged.gguf", 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            position = rng.randrange(rng.choice((64, 400, len(data))))
            data[position] = rng.randrange(256)
        path.write_bytes(data)
        try:
            file = open_gguf(path)
            for tensor in file.tensors:
                assert tensor.data.nbytes == tensor.num_bytes
            tokenizer_from_gguf(file).encode("hello <|end|>")
        except ModelError as error:
            refused += str(path) in str(error)
    assert refused > 50
