"""Workloads over HTTP, against any OpenAI-compatible server: ``python -m bench.serving http --url http://127.0.0.1:8000
rate:25:600 burst:512 spike``, or with ``--start-server "--model ..."`` against one that is started for it.

Streamed completions of token ids from several client processes, so that the client is never the limit. Measured where
the client is: from the moment a request is due to the first event with text (TTFT), between successive events with text
of a stream (ITL). One failed or short answer voids the measurement. Each workload runs ``--repeats`` times with other
prompts; of every figure the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from bench.serving import records
from bench.serving.clients import run_calls
from bench.serving.server_process import ROOT, ServerProcess, get
from bench.serving.sse_client import Call, Client, Outcome, request_bytes
from bench.serving.workloads import Item, make_online_workload

SAMPLED = {"temperature": 0.8, "top_p": 0.95, "top_k": 50}
WARM_UP_SEED = 1 << 20  # prompts that no measured run has
MAX_LATE_S = 0.1  # a client that begins a request later than this is what is being measured


class Target:
    """The server under test as the client sees it."""

    def __init__(self, url: str, shape: str | None, vocab_size: int | None, api_key: str | None, sampled: bool):
        self._parts = urlsplit(url)
        self._api_key = api_key
        self._sampling = SAMPLED if sampled else {"temperature": 0}
        card = get(f"{url}/v1/models", api_key)["data"][0]
        self.model = card["id"]
        self.served_by = f"{card.get('owned_by', '?')} {_version(url, api_key)}".strip()
        self.shape = shape or Path(self.model).name
        self.vocab_size = vocab_size or _vocab_size(self.shape)

    def run(self, items: list[Item], num_processes: int) -> list[Outcome]:
        calls = [self._call(i, item) for i, item in enumerate(items)]
        return run_calls(self._parts.hostname, self._parts.port or 80, calls, num_processes)

    def run_here(self, item: Item) -> Outcome:
        """One request from this process, at once; times count from now."""
        client = Client(self._parts.hostname, self._parts.port or 80)
        return client.run([self._call(0, item)], time.monotonic())[0]

    def _call(self, index: int, item: Item) -> Call:
        body = {
            "model": self.model,
            "prompt": item.prompt_token_ids,
            "max_tokens": item.max_tokens,
            "ignore_eos": True,
            "seed": index,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }
        wire = request_bytes(self._parts.netloc, f"{self._parts.path}/v1/completions", body, self._api_key)
        return Call(index, wire, len(item.prompt_token_ids), item.max_tokens, item.arrival_s, item.chained)


def _version(url: str, api_key: str | None) -> str:
    try:
        return get(f"{url}/version", api_key)["version"]
    except (OSError, LookupError, TypeError):
        return ""


def _vocab_size(shape: str) -> int:
    """Of a known shape; else so few that any model has them: which ids a prompt has makes no difference to its time."""
    path = ROOT / "bench" / "shapes" / shape / "config.json"
    return json.loads(path.read_text())["vocab_size"] if path.exists() else 32_000


def check(outcomes: list[Outcome], num_items: int) -> None:
    """Every answer came and was whole; a run that fails this is not a measurement."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed or len(outcomes) != num_items:
        first = f": request {failed[0].index}: {failed[0].error}" if failed else ""
        raise SystemExit(f"{len(failed)} of {num_items} requests failed: not measured{first}")
    late_s = max(outcome.sent_s - outcome.due_s for outcome in outcomes)
    if late_s > MAX_LATE_S:
        raise SystemExit(f"the client began a request {late_s:.3f} s late: not measured (more --client-processes?)")


def figures(items: list[Item], outcomes: list[Outcome]) -> dict:
    """What one run measured. Long prompts of a chain have their time to first token apart, and no say in the rest."""
    pairs = list(zip(items, outcomes, strict=True))
    streams = [outcome for item, outcome in pairs if not item.chained]
    ttft_ms = np.array([1e3 * (outcome.event_s[0] - outcome.due_s) for outcome in streams])
    gaps = [np.diff(outcome.event_s) for outcome in streams]
    itl_ms = 1e3 * np.concatenate(gaps) if any(len(gap) for gap in gaps) else np.zeros(1)
    seconds = max(outcome.end_s for outcome in outcomes) - min(outcome.due_s for outcome in outcomes)
    num_output = sum(item.max_tokens for item in items)
    num_prompt = sum(len(item.prompt_token_ids) for item in items)
    measured = {
        "seconds": seconds,
        "output_tok_s": num_output / seconds,
        "all_tok_s": (num_output + num_prompt) / seconds,
        "ttft_p50_ms": np.percentile(ttft_ms, 50),
        "ttft_p99_ms": np.percentile(ttft_ms, 99),
        "itl_p50_ms": np.percentile(itl_ms, 50),
        "itl_p99_ms": np.percentile(itl_ms, 99),
        "itl_max_ms": itl_ms.max(),
        "tokens_per_event": num_output / sum(len(outcome.event_s) for outcome in outcomes),
        "client_late_ms": 1e3 * max(outcome.sent_s - outcome.due_s for outcome in outcomes),
    }
    longs = [outcome for item, outcome in pairs if item.chained]
    for i, outcome in enumerate(longs):
        measured[f"long_ttft_{i}_ms"] = 1e3 * (outcome.event_s[0] - outcome.due_s)
    return measured


def measure(target: Target, spec: str, repeats: int, num_processes: int) -> dict:
    runs = []
    for seed in range(repeats):
        items = make_online_workload(spec, target.vocab_size, seed)
        outcomes = target.run(items, num_processes)
        check(outcomes, len(items))
        runs.append(figures(items, outcomes))
    medians = {name: round(float(statistics.median(run[name] for run in runs)), 3) for name in runs[0]}
    longs = [medians.pop(name) for name in list(medians) if name.startswith("long_ttft_")]
    return {
        "workload": spec,
        "mode": "http",
        "served_by": target.served_by,
        **medians,
        **({"long_ttft_ms": longs} if longs else {}),
        "seconds_all": [round(run["seconds"], 3) for run in runs],
        "requests": len(items),
        "client_processes": num_processes,
    }


def warm_up(target: Target, num_processes: int) -> None:
    """Every path once, and batches of a size that a server may have to prepare for."""
    items = make_online_workload("burst:64", target.vocab_size, WARM_UP_SEED)
    items = [Item(item.prompt_token_ids[:1024], min(item.max_tokens, 64)) for item in items]
    check(target.run(items, num_processes), len(items))


def line(record: dict) -> str:
    text = (
        f"{record['shape']} {record['workload']}: {record['seconds']} s, {record['output_tok_s']:.0f} output tok/s | "
        f"TTFT p50 {record['ttft_p50_ms']:.0f} p99 {record['ttft_p99_ms']:.0f} ms | ITL p50 {record['itl_p50_ms']:.1f} "
        f"p99 {record['itl_p99_ms']:.1f} max {record['itl_max_ms']:.0f} ms"
    )
    if "long_ttft_ms" in record:
        text += f" | TTFT of the long prompts {', '.join(f'{ms:.0f}' for ms in record['long_ttft_ms'])} ms"
    return text


def probe_apart() -> dict:
    """What the machine can do, measured by a process that is gone before the server takes the memory."""
    done = subprocess.run([sys.executable, "-m", "bench.serving.machine"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the probe of the machine failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.serving http", description=__doc__.split("\n\n")[0])
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help="rate:R:N, burst:N, spike, or an offline one")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000", help="of a running server, without /v1")
    where.add_argument("--start-server", metavar="FLAGS", help="probe, then start `python -m server FLAGS`")
    parser.add_argument("--probe", type=Path, help="JSON written by `python -m bench.serving.machine` on this machine")
    parser.add_argument("--shape", help="name in the records; default: the last part of the model's name")
    parser.add_argument("--vocab-size", type=int, help="prompt ids are below it; default: the shape's, or 32000")
    parser.add_argument("--api-key")
    parser.add_argument("--sampled", action="store_true", help="at T 0.8, top-p 0.95, top-k 50 instead of greedy")
    parser.add_argument("--client-processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-warm-up", action="store_true")
    parser.add_argument("--save", action="store_true", help="append to bench/results; needs a probe")
    return parser


def main(argv: list[str]) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    for spec in args.workloads:
        make_online_workload(spec, 100)  # a typing mistake shows before anything is started
    if args.save and not args.start_server and args.probe is None:
        parser.error("--save needs --probe FILE or --start-server: a record says what its machine could do")
    probed = json.loads(args.probe.read_text()) if args.probe else probe_apart() if args.start_server else {}
    with ExitStack() as stack:
        started = {}
        if args.start_server is not None:
            server = stack.enter_context(ServerProcess(args.start_server))
            args.url, started = server.url, {"ready_s": round(server.ready_s, 2)}
        target = Target(args.url.rstrip("/"), args.shape, args.vocab_size, args.api_key, args.sampled)
        print(f"{target.model} by {target.served_by} | {probed or 'machine not probed'} {started or ''}", flush=True)
        if not args.no_warm_up:
            warm_up(target, args.client_processes)
        measured = []
        for spec in args.workloads:
            record = measure(target, spec, args.repeats, args.client_processes)
            name = spec + (" sampled" if args.sampled else "")
            record = {"shape": target.shape, **record, "workload": name, **started, **probed, **records.origin()}
            print(line(record), flush=True)
            measured.append(record)
    if args.save:
        print(f"saved to {records.save(measured, probed['device'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
