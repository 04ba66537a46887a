"""Folders that cost what a real checkpoint costs, made from a shape alone: weights of full size, a vocabulary of full
size.

``python -m bench.stand_in FOLDER --model bench/shapes/llama31-8b`` writes random bfloat16 safetensors of all tensors
(16 GB in four files for llama31-8b), ``config.json`` and a tokenizer. Loading does not care what weights say; they have
the scale that keeps activations finite, and repeat with a long period because nothing depends on their not doing so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pyengine.models.config import load_model_config
from pyengine.models.registry import find_architecture
from pyengine.models.weights.parameter import Parameter

SHAPE = Path(__file__).resolve().parent / "shapes" / "llama31-8b"
NUM_FILES = 4
POOL_ELEMENTS = 32_000_023  # 64 MB, and a prime, so that the tensors of equal shape do not begin equal
END = "<|end|>"

Tensors = list[tuple[str, tuple[int, ...]]]


def write_checkpoint(folder: Path, shape: Path) -> int:
    """Everything a server needs, below ``folder``; returns the bytes of all weights."""
    config = load_model_config(shape)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(shape / "config.json", folder)
    parameters = find_architecture((config.architecture,), config.source).load_graph().parameters(config)
    files = _shared_out(parameters)
    with ThreadPoolExecutor(len(files) + 1) as pool:
        tokenizer = pool.submit(write_tokenizer, folder, config.vocab_size)
        sizes = list(pool.map(lambda item: _write_file(folder / item[0], item[1]), files.items()))
        tokenizer.result()
    index = {name: file for file, tensors in files.items() for name, _ in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(sizes)


def _shared_out(parameters: list[Parameter]) -> dict[str, Tensors]:
    """The tensors of each file, in order, about as many bytes in each."""
    tensors = [(name, parameter.part_shape(rows)) for parameter in parameters for name, rows in parameter.parts]
    total, done = sum(math.prod(shape) for _, shape in tensors), 0
    files: dict[str, Tensors] = {}
    for name, shape in tensors:
        number = min(NUM_FILES, 1 + done * NUM_FILES // total)
        files.setdefault(f"model-{number:05}-of-{NUM_FILES:05}.safetensors", []).append((name, shape))
        done += math.prod(shape)
    return files


def _write_file(path: Path, tensors: Tensors) -> int:
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pools: dict[float, np.ndarray] = {}
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, (_, shape) in enumerate(tensors):
            bound = math.sqrt(3 / shape[-1]) if len(shape) > 1 else 0.0
            if bound not in pools:
                pools[bound] = _bfloat16(bound)
            _write_values(file.fileno(), pools[bound], math.prod(shape), i * 7_654_321)
    return end


def _bfloat16(bound: float) -> np.ndarray:
    """uint16: the bits of uniform values within ``bound``; of 1 where it is 0 (vectors are norms)."""
    if bound == 0:
        return np.full(1 << 16, 0x3F80, np.uint16)
    values = np.random.default_rng(0).uniform(-bound, bound, POOL_ELEMENTS).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_values(fd: int, pool: np.ndarray, count: int, begin: int) -> None:
    while count:
        begin %= len(pool)
        part = memoryview(pool[begin : begin + count]).cast("B")
        written = os.write(fd, part) // 2  # a multiple of two: files are written in whole pages, pieces are even
        begin, count = begin + written, count - written


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE of ``vocab_size`` tokens: bytes, JSON's punctuation, syllables, words of them; the last ends a
    sequence.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {char: i for i, char in enumerate(alphabet)}, []

    def merge(left: str, right: str) -> None:
        if left + right not in vocab and len(vocab) < vocab_size - 1:
            vocab[left + right] = len(vocab)
            merges.append((left, right))

    for left, right in ['{"', '":', '",', "},", '"}', "},", "],", '["', "[{", "Ġ{", "Ġ["]:
        merge(left, right)
    rng, parts = random.Random(0), [chr(c) for c in range(ord("a"), ord("z") + 1)]
    for vowel in "aeiou":
        for consonant in parts[:26]:
            merge(consonant, vowel)
    syllables = [token for token in vocab if len(token) == 2 and token.isalpha() and token.isascii()]
    words = list(syllables)
    for syllable in syllables:
        merge("Ġ", syllable)
        words.append("Ġ" + syllable)
    while len(vocab) < vocab_size - 1:
        left = rng.choice(words)
        right = rng.choice(syllables)
        if len(left) < 12 and left + right not in vocab:
            words.append(left + right)
            merge(left, right)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stand_in", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHAPE, help="folder with the config.json of a shape")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    num_bytes = write_checkpoint(args.folder, args.model)
    seconds = time.monotonic() - begin
    print(f"{args.folder}: {num_bytes / 1e9:.2f} GB in {seconds:.1f} s, {num_bytes / seconds / 1e9:.2f} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
