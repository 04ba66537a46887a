"""What others measured, to compare with: vLLM 0.24.0 on one NVIDIA H100 80GB HBM3 (22 November 2026, its defaults,
random weights, the workloads of ``bench/serving/workloads.py``), and the least time the work can take there.

Rooflines: weights and KV read at 3.0 TB/s, matrix products at 790 TFLOP/s, prefill and decode added up.
"""

from __future__ import annotations

DEVICE = "NVIDIA H100 80GB HBM3"
SOURCE = "vLLM 0.24.0"
PROBED = {"copy_tb_s": 3.02, "gemm_tflop_s": 722.0}

SECONDS = {  # (shape, workload) -> vLLM's seconds, the roofline's or None
    ("llama31-8b", "nano"): (17.06, 13.4),
    ("llama31-8b", "nano sampled"): (17.52, 13.4),
    ("llama31-8b", "mix1024-256"): (25.86, 18.6),
    ("llama31-8b", "latency1"): (1.708, 1.31),
    ("llama31-8b", "latency32"): (2.869, 2.27),
    ("llama31-8b", "prefill"): (12.35, 9.8),
    ("llama31-8b", "long16k"): (9.79, 8.6),
    ("llama31-8b", "prefix"): (4.65, 2.2),
    ("qwen3-0.6b", "nano"): (7.53, 5.4),
    ("qwen3-0.6b", "nano sampled"): (7.92, None),
    ("qwen3-0.6b", "latency1"): (0.461, None),
    ("smol-135m", "nano"): (4.75, 1.4),
}

HTTP = {  # llama31-8b over HTTP, four client processes
    "rate:25:600": {"ttft_p50_ms": 40, "ttft_p99_ms": 137, "itl_p50_ms": 8.3, "itl_p99_ms": 33.5, "itl_max_ms": 118},
    "burst:512": {"ttft_p50_ms": 3320, "ttft_p99_ms": 6810, "itl_p50_ms": 30.8, "itl_p99_ms": 211, "itl_max_ms": 379},
    "spike": {"itl_p50_ms": 8.0, "itl_p99_ms": 198, "itl_max_ms": 287},
}
