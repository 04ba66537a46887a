"""What a KV cache in fp8 changes: ``python -m bench.accuracy.kv_cache --model smollm2-135m``.

A text, by default this project's own documentation, is cut into prompts, and every token's log-probability is read with
a KV cache of the model's dtype and with one in fp8. Printed are the perplexities, how far the log-probabilities of the
text's tokens move, and how often the likeliest token stays the same. A yardstick beside it: what computing in float32
instead of bfloat16 moves, where the device has both.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyengine import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reading:
    """Of each token of all prompts but their first ones: its log-probability, and which token was the likeliest."""

    logprobs: np.ndarray  # float64 [num_tokens]
    likeliest: np.ndarray  # int64 [num_tokens]


def project_text() -> str:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/decisions").glob("*.md"))]
    return "\n\n".join(file.read_text() for file in files)


def read(text: str, length: int, **options: object) -> Reading:
    llm = LLM(**options)
    token_ids = llm.get_tokenizer().encode(text)
    prompts = [token_ids[at : at + length] for at in range(0, len(token_ids) - length + 1, length)]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    logprobs, likeliest = [], []
    for output in llm.generate(prompts, params, use_tqdm=False):
        for token_id, entries in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            logprobs.append(entries[token_id].logprob)
            likeliest.append(next(i for i, entry in entries.items() if entry.rank == 1))
    return Reading(np.array(logprobs), np.array(likeliest))


def compare(name: str, reading: Reading, base: Reading) -> str:
    moved = np.abs(reading.logprobs - base.logprobs)
    same = np.mean(reading.likeliest == base.likeliest)
    return (
        f"{name}: perplexity {math.exp(-reading.logprobs.mean()):.4f} (beside {math.exp(-base.logprobs.mean()):.4f}), "
        f"a token's log-probability moves by {moved.mean():.4f} on average, {np.quantile(moved, 0.99):.3f} at p99; "
        f"the likeliest token stays in {same:.2%} of {len(moved)}"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.kv_cache", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--text", type=Path, help="a file; default: README.md and docs")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a prompt (default 1024)")
    args = parser.parse_args(argv)
    text = args.text.read_text() if args.text else project_text()
    shared = {"model": args.model, "device": args.device, "max_model_len": args.length + 1}
    base = read(text, args.length, **shared)
    print(compare("KV cache in fp8", read(text, args.length, kv_cache_dtype="fp8", **shared), base), flush=True)
    if args.device == "cpu":
        print(compare("all in float32", read(text, args.length, dtype="float32", **shared), base), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
