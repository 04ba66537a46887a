"""``python -m bench.report``: makes docs/benchmarks.md from bench/results/*.json. The newest record of each shape and
workload counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TARGET = ROOT / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `python -m bench.report` from `bench/results/*.json`, which `bench/serving/offline.py` writes. Offline, random
prompts, every request to its last token, prefill included, median of the repeats. Machines differ and shared ones
drift, so each record carries what the machine could do in the same run: read bandwidth on a CPU, copy bandwidth and a
large matrix product on a GPU.

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

To compare with, SmolLM2-135M on two cores of another machine (AMD Zen 5 with AVX-512 BF16, 40 GB/s), November 2026,
best of three; llama.cpp's single stream is its decode rate alone and its 16 streams went over HTTP. Absolute figures of
different machines do not compare: bandwidth decides chat1, and the tables below say what their machines had.

| engine | weights | chat1, output tok/s | chat16, output tok/s | prefill of 512, tok/s |
|---|---|---|---|---|
| vLLM 0.32, CPU build | bf16 | 64 | 358 | 1379..1452 |
| llama.cpp server b11434 | Q4_1 | 163 | 185 | 447..466 |
"""


def latest(records: list[dict]) -> list[dict]:
    """One record per (shape, workload), the last written."""
    return list({(record["shape"], record["workload"]): record for record in records}.values())


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


def main() -> int:
    parts = [HEAD]  # what comes from elsewhere is in the head; all else is read from records
    for path in sorted(RESULTS.glob("*.json")):
        records = json.loads(path.read_text())
        parts.append(f"## {records[0]['device']}\n\n{table(records)}\n")
    TARGET.write_text("\n".join(parts))
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
