"""The instruments that need an engine run, on a tiny model: what they print on a GPU is another matter."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from engine_helpers import generate

from bench import stand_in
from bench.invariance import cost
from bench.sampling import __main__ as sampling
from bench.serving import records
from pyengine.sampling_params import SamplingParams
from pyengine.text.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def free_memory(backend):
    """Each instrument takes what memory a GPU has: that of engines that are gone must be free again."""
    gc.collect()
    if backend == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where --save writes to; the records of the one file there."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return lambda: json.loads(next((tmp_path / "results").iterdir()).read_text())


def test_a_stand_in_is_loaded_like_a_checkpoint(tiny_model, tmp_path, make_engine, monkeypatch):
    monkeypatch.setattr(stand_in, "POOL_ELEMENTS", 10_007)  # many times round for each tensor
    num_bytes = stand_in.write_checkpoint(tmp_path / "tiny", Path(tiny_model))
    files = list((tmp_path / "tiny").glob("*.safetensors"))
    assert len(files) > 1 and 0 < sum(file.stat().st_size for file in files) - num_bytes < 100_000
    engine = make_engine(model=str(tmp_path / "tiny"), load_format="auto")
    assert engine.facts.model.num_parameters * 2 == num_bytes
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    tokens = generate(engine, {"a": ([5, 6, 7], params), "b": ([9], params)})
    assert tokens["a", 0] != tokens["b", 0]
    tokenizer = load_tokenizer(tmp_path / "tiny")
    assert tokenizer.vocab_size == engine.facts.model.vocab_size
    assert tokenizer.decode(tokenizer.encode('{"a": "ü b"}')) == '{"a": "ü b"}'


def test_the_cost_of_equal_bits(tiny_model, backend, results):
    arguments = ["--model", tiny_model, "--rows", "1", "9", "--device", backend, "--save"]
    assert cost.main(arguments) == 0
    (record,) = results()
    assert record["mode"] == "invariance" and list(record["by_rows"]) == ["1", "9"]
    for line in record["by_rows"].values():
        assert line["ratio"] == pytest.approx(line["ours_ms"] / line["free_ms"], rel=0.2)
        assert list(line["layers"]) == ["qkv", "o", "gate_up", "down", "head"]


def test_stages_and_structured_output(tiny_model, backend, results):
    sizes = {"rows": 4, "streams": 2, "prompt": 8, "steps": 3, "output": 12, "repeats": 1}
    flags = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    assert sampling.main(["stages", "structured", "--model", tiny_model, "--device", backend, *flags, "--save"]) == 0
    stages, structured = results()
    assert stages["plain_step_ms"] > 0 and "penalties, log-probabilities, masks" in stages["ratios"]
    assert structured["ratio"] == pytest.approx(structured["output_tok_s"] / structured["free_tok_s"], rel=0.1)


def test_an_answer_that_ends_is_not_measured(tiny_model, backend, monkeypatch):
    monkeypatch.setattr(sampling, "ENDLESS", {"enum": ["soon over"]})
    arguments = ["structured", "--model", tiny_model, "--device", backend, "--streams", "2", "--output", "40"]
    with pytest.raises(SystemExit, match="an answer came to its end, not measured"):
        sampling.main(arguments)
