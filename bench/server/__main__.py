"""Events a second of one server process on one core: ``python -m bench.server 15000 20000 30000``.

A stub engine makes one token for each of 256 streams at every step, at the given numbers of tokens a second in all;
the server takes them in as msgpack, detokenises, watches for stop strings and writes one event of JSON for each; a
client on the other cores reads all of them. A server that falls behind sends the events of several steps at once,
which is cheaper: a rate is reached when all events came in time and most of them a step after the one before. Before
anything is timed, one answer is compared with what the tokens say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request

import numpy as np

from bench.server.stub_engine import TEXT
from bench.serving.server_process import ROOT, ServerProcess
from bench.serving.sse_client import Call, Client, Outcome, request_bytes

STOPS = ["\n\nUser:", "</answer>"]  # never met, always watched
CPU_TICKS = os.sysconf("SC_CLK_TCK")


class StubServer(ServerProcess):
    """See ``stub_server``."""

    def __init__(self, streams: int, rate: float, core: int, flags: list[str]):
        super().__init__("", quiet=True)
        self._command = [sys.executable, "-m", "bench.server.stub_server", str(streams), str(rate), str(core)]
        self._command += ["--port", str(self.port), *flags]

    def start(self) -> None:
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def cpu_s(self) -> float:
        """Of the server, without its engine."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CPU_TICKS


def body(chat: bool, num_tokens: int, stream: bool) -> tuple[str, dict]:
    shared = {"max_tokens": num_tokens, "stop": STOPS, "stream": stream, "ignore_eos": True, "temperature": 0}
    if stream:
        shared["stream_options"] = {"include_usage": True}
    if chat:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": "Go on."}], **shared}
    return "/v1/completions", {"prompt": [100, 101, 102, 103], **shared}


def prove(chat: bool, flags: list[str]) -> int:
    """One answer is the stub's text, repeated; returns how many tokens its prompt has."""
    with StubServer(1, 1000.0, 0, flags) as server:
        path, payload = body(chat, 200, stream=False)
        request = urllib.request.Request(
            server.url + path, json.dumps(payload).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    choice = answer["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    if answer["usage"]["completion_tokens"] != 200 or not text or not (TEXT * 9).startswith(text):
        raise SystemExit(f"the answer is not the stub's text: not measured\n{text!r}")
    return answer["usage"]["prompt_tokens"]


def run(args: argparse.Namespace, rate: float, num_prompt: int, flags: list[str]) -> dict:
    num_tokens = min(4000, round(args.seconds * rate / args.streams))
    path, payload = body(args.chat, num_tokens, stream=True)
    with StubServer(args.streams, rate, args.core, flags) as server:
        wire = request_bytes("127.0.0.1", path, payload)
        calls = [Call(i, wire, num_prompt, num_tokens) for i in range(args.streams)]
        client = Client("127.0.0.1", server.port, silence_s=30)
        begin_cpu_s = server.cpu_s()
        outcomes = client.run(calls, time.monotonic())
        cpu_s = server.cpu_s() - begin_cpu_s
    wrong = [outcome.error for outcome in outcomes if outcome.error is not None]
    if wrong:
        raise SystemExit(f"{len(wrong)} streams failed: not measured: {wrong[0]}")
    return figures(outcomes, num_tokens, rate, cpu_s)


def figures(outcomes: list[Outcome], num_tokens: int, rate: float, cpu_s: float) -> dict:
    num_events = sum(len(outcome.event_s) for outcome in outcomes)
    seconds = max(o.event_s[-1] for o in outcomes) - min(o.event_s[0] for o in outcomes)
    gaps_ms = 1e3 * np.concatenate([np.diff(outcome.event_s) for outcome in outcomes])
    return {
        "offered_per_s": rate,
        "events_per_s": round(num_events / seconds),
        "events_per_token": round(num_events / num_tokens / len(outcomes), 4),
        "events_per_read": round(num_events / len({time_s for o in outcomes for time_s in o.event_s}), 3),
        "server_us_per_event": round(1e6 * cpu_s / num_events, 1),  # the requests' begin and end included
        "itl_p50_ms": round(float(np.percentile(gaps_ms, 50)), 2),
        "itl_p99_ms": round(float(np.percentile(gaps_ms, 99)), 2),
        "itl_max_ms": round(float(gaps_ms.max()), 1),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__.split("\n\n")[0])
    parser.add_argument("rates", nargs="+", type=float, help="tokens a second of all streams together")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--core", type=int, default=0, help="the server's; client and stub keep to the others")
    parser.add_argument("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    args, flags = parser.parse_known_args(argv)
    num_prompt = prove(args.chat, flags)
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {args.core} or {args.core})
    for rate in args.rates:
        record = run(args, rate, num_prompt, flags)
        if record["events_per_token"] < 0.99:
            raise SystemExit(f"not one event a token: not measured: {record}")
        kept_up = record["events_per_s"] >= 0.97 * rate and record["itl_p50_ms"] >= 0.9e3 * args.streams / rate
        print(f"{record} {'reached' if kept_up else 'not reached'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
