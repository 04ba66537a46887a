"""``python -m bench.report``: makes docs/benchmarks.md and docs/plots from bench/results/*.json. The newest record of
each shape and workload counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import plots

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TARGET = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "plots"

HEAD = """# Benchmarks

Made by `python -m bench.report` from `bench/results/*.json`, which `python -m bench.serving offline` and `http` write.
Random prompts, every request to its last token, prefill included, median of the repeats. Machines differ and shared
ones drift, so each record carries what the machine could do in the same run: read bandwidth on a CPU, copy bandwidth
and a large matrix product on a GPU. Over HTTP the client runs on the same machine, in several processes; TTFT counts
from the moment a request is due, ITL between two events with text of one stream.

| workload | requests | prompt | output |
|---|---|---|---|
| chat1 / chat16 | 1 / 16 | 128 | 128 |
| prefill512 | 1 | 512 | 1 |
| nano | 256 | 100..1024 | 100..1024 |
| mix1024-256 | 512 | 1024 | 256 |
| latency1 / latency32 | 1 / 32 | 1024 | 256 |
| prefill | 256 | 2048 | 1 |
| long16k | 16 | 16000 | 128 |
| prefix | 512 | 2048 shared + 128 | 64 |
| rate:R:N | N, Poisson, R a second | lognormal(5.8, 0.9) in 16..4000 | lognormal(5.0, 0.7) in 16..1000 |
| burst:N | N at once | same | same |
| spike | 32 at once, then six one after another | 512; 16000 | 700; 1 |

To compare with, SmolLM2-135M on two cores of another machine (AMD Zen 5 with AVX-512 BF16, 40 GB/s), November 2026,
best of three; llama.cpp's single stream is its decode rate alone and its 16 streams went over HTTP. Absolute figures of
different machines do not compare: bandwidth decides chat1, and the tables below say what their machines had.

| engine | weights | chat1, output tok/s | chat16, output tok/s | prefill of 512, tok/s |
|---|---|---|---|---|
| vLLM 0.32, CPU build | bf16 | 64 | 358 | 1379..1452 |
| llama.cpp server b11434 | Q4_1 | 163 | 185 | 447..466 |
"""


def latest(records: list[dict]) -> list[dict]:
    """One record per server, shape and workload, the last written."""
    return list({(r.get("served_by"), r["shape"], r["workload"]): r for r in records}.values())


def machine_text(record: dict) -> str:
    units = {"read_gb_s": "GB/s read", "copy_tb_s": "TB/s copy", "gemm_tflop_s": "TFLOP/s GEMM"}
    return ", ".join(f"{record[name]:g} {unit}" for name, unit in units.items() if name in record)


def table(records: list[dict]) -> str:
    lines = [
        "| model | workload | seconds | output tok/s | all tok/s | machine in the same run | commit | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in latest(records):
        fraction = f" (weights: {r['weight_read_fraction']:.0%} of it)" if "weight_read_fraction" in r else ""
        lines.append(
            f"| {r['shape']} {r['dtype']} | {r['workload']} | {r['seconds']} | {r['output_tok_s']:g} | "
            f"{r['all_tok_s']:g} | {machine_text(r)}{fraction} | {r['commit']} | {r['date']} |"
        )
    return "\n".join(lines)


def http_table(records: list[dict]) -> str:
    lines = [
        "| model | workload | served by | output tok/s | TTFT p50 / p99, ms | ITL p50 / p99 / max, ms | "
        "TTFT of long prompts, ms | machine in the same run | commit | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in latest(records):
        longs = ", ".join(f"{ms:.0f}" for ms in r.get("long_ttft_ms", []))
        lines.append(
            f"| {r['shape']} | {r['workload']} | {r['served_by']} | {r['output_tok_s']:.0f} | "
            f"{r['ttft_p50_ms']:.0f} / {r['ttft_p99_ms']:.0f} | "
            f"{r['itl_p50_ms']:.1f} / {r['itl_p99_ms']:.1f} / {r['itl_max_ms']:.0f} | {longs} | "
            f"{machine_text(r)} | {r['commit']} | {r['date']} |"
        )
    return "\n".join(lines)


def start_table(records: list[dict]) -> str:
    lines = [
        "| model | flags | first token after, s | first try | phases, s | machine in the same run | commit | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in latest(records):
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in r["phases_s"].items())
        lines.append(
            f"| {r['shape']} | `{r['flags']}` | {r['seconds']} | {r['first_try_s']} | {phases} | {machine_text(r)} | "
            f"{r['commit']} | {r['date']} |"
        )
    return "\n".join(lines)


def invariance_table(records: list[dict]) -> str:
    lines = [
        "| model | rows | dense layers of a step, ms | best of cuBLAS and cuBLASLt, split-K allowed, ms | ratio | "
        "by layer | machine in the same run | commit | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in latest(records):
        for rows, line in r["by_rows"].items():
            layers = ", ".join(f"{name} {ratio:.3f}" for name, ratio in line["layers"].items())
            lines.append(
                f"| {r['shape']} | {rows} | {line['ours_ms']:.3f} | {line['free_ms']:.3f} | {line['ratio']:.3f} | "
                f"{layers} | {machine_text(r)} | {r['commit']} | {r['date']} |"
            )
    return "\n".join(lines)


def sampling_table(records: list[dict]) -> str:
    lines = ["| model | what | figures | machine in the same run | commit | date |", "|---|---|---|---|---|---|"]
    for r in latest(records):
        if "ratios" in r:
            ratios = ", ".join(f"{name} {ratio:.3f}" for name, ratio in r["ratios"].items())
            figures = f"a plain step {r['plain_step_ms']:.3f} ms; with {ratios} of it"
        else:
            figures = f"{r['output_tok_s']:.0f} output tok/s, free {r['free_tok_s']:.0f}: {r['ratio']:.3f}"
        lines.append(
            f"| {r['shape']} {r['dtype']} | {r['workload']}, context {r['prompt_tokens']} and up | {figures} | "
            f"{machine_text(r)} | {r['commit']} | {r['date']} |"
        )
    return "\n".join(lines)


def section(records: list[dict], device: str) -> str:
    """All of one device: the engine alone, then over HTTP, then the start."""
    online = [record for record in records if record.get("mode") == "http"]
    offline = [record for record in records if "mode" not in record]
    parts = [f"## {records[0]['device']}"]
    if offline:
        parts.append(table(offline))
    if online:
        parts += ["Over HTTP:", http_table(online)]
    starts = [record for record in records if record.get("mode") == "start"]
    if starts:
        parts += ["From the start of the process to the first token:", start_table(starts)]
    titles = {
        "invariance": ("What equal bits cost:", invariance_table),
        "sampling": ("Stages of the sampler and structured output:", sampling_table),
    }
    for mode, (title, make_table) in titles.items():
        chosen = [record for record in records if record.get("mode") == mode]
        if chosen:
            parts += [title, make_table(chosen)]
    for path in plots.write(latest(records), device, PLOTS, machine_text):
        parts.append(f"![{path.stem}](plots/{path.name})")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parts = [HEAD]  # what comes from elsewhere is in the head; all else is read from records
    for path in sorted(RESULTS.glob("*.json")):
        parts.append(section(json.loads(path.read_text()), path.stem))
    TARGET.write_text("\n".join(parts))
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
