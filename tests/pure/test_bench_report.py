"""The page and the plots are made of records and say what these say."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bench import anchors, plots, report

SHARED = {"commit": "c", "date": "2026-11-25", "copy_tb_s": 3.0, "gemm_tflop_s": 700.0, "device": anchors.DEVICE}
OFFLINE = {**SHARED, "shape": "llama31-8b", "dtype": "bfloat16", "all_tok_s": 2.0, "output_tok_s": 1.0}
HTTP = {
    **SHARED,
    "shape": "llama31-8b",
    "mode": "http",
    "served_by": "pyengine 1",
    "seconds": 3.0,
    "output_tok_s": 9.0,
    "ttft_p50_ms": 10.0,
    "ttft_p99_ms": 20.0,
    "itl_p50_ms": 3.0,
    "itl_p99_ms": 4.0,
    "itl_max_ms": 5.0,
}


def texts(svg: str) -> list[str]:
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_bars_against_the_anchors():
    records = [{**OFFLINE, "workload": "nano", "seconds": 15.2}, {**OFFLINE, "workload": "chat1", "seconds": 1.0}]
    svg = plots.against_anchors(records, report.machine_text)
    assert "15.2 s" in texts(svg) and "llama31-8b nano" in texts(svg)
    assert not any("chat1" in text for text in texts(svg))


def test_another_device_is_not_compared():
    record = {**OFFLINE, "workload": "nano", "seconds": 15.2, "device": "NVIDIA A100"}
    assert plots.against_anchors([record], report.machine_text) is None


@pytest.mark.parametrize(("rates", "num_plots"), [([5, 25], 0), ([5, 10, 25], 1)])
def test_latency_against_load(rates, num_plots):
    made = plots.latency_against_load([{**HTTP, "workload": f"rate:{r}:600"} for r in rates], report.machine_text)
    assert len(made) == num_plots
    for svg in made.values():
        assert {"5", "10", "25", "TTFT p99", "ITL p50"} <= set(texts(svg))


def test_a_page_of_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PLOTS", tmp_path)
    start = {**SHARED, "shape": "smol", "mode": "start", "served_by": "pyengine 1", "workload": "start"}
    start |= {"seconds": 1.7, "first_try_s": 2.0, "phases_s": {"import": 0.9}, "flags": "--model smol"}
    rates = [{**HTTP, "workload": f"rate:{r}:600"} for r in (1, 2, 3)]
    spike = {**HTTP, "workload": "spike", "long_ttft_ms": [500.0, 510.4]}
    other = {**spike, "served_by": "vllm 0.24.0"}
    by_rows = {"64": {"ours_ms": 5.6, "free_ms": 5.5, "ratio": 1.018, "layers": {"qkv": 1.02, "head": 0.98}}}
    cost = {**SHARED, "shape": "smol", "mode": "invariance", "workload": "dense step", "by_rows": by_rows}
    sampling = {**SHARED, "shape": "smol", "mode": "sampling", "dtype": "bfloat16", "prompt_tokens": 256}
    stages = {**sampling, "workload": "stages of 256 rows", "plain_step_ms": 8.5, "ratios": {"masks": 1.012}}
    bound = {**sampling, "workload": "structured", "output_tok_s": 90.0, "free_tok_s": 100.0, "ratio": 0.9}
    new = [cost, stages, bound]
    page = report.section([{**OFFLINE, "workload": "nano", "seconds": 15.2}, *rates, spike, other, start, *new], "h100")
    assert "| 64 | 5.600 | 5.500 | 1.018 | qkv 1.020, head 0.980 |" in page
    assert "a plain step 8.500 ms; with masks 1.012 of it" in page and "90 output tok/s, free 100: 0.900" in page
    assert "500, 510" in page and "import 0.90" in page and "| vllm 0.24.0 |" in page
    assert page.count("](plots/h100-") == len(list(tmp_path.iterdir())) == 2
