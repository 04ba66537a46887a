"""Several client processes that start at one moment and give back what came of their calls."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

from bench.serving.sse_client import Call, Client, Outcome

START_DELAY_S = 0.2  # between "all are ready" and the first call


def run_calls(host: str, port: int, calls: list[Call], num_processes: int) -> list[Outcome]:
    """Outcomes in the order of the calls. Chained calls go to one process, which alone knows when one has ended."""
    context = multiprocessing.get_context("spawn")
    free = [call for call in calls if not call.chained]
    shares = [free[i::num_processes] for i in range(num_processes)]
    shares[-1] = shares[-1] + [call for call in calls if call.chained]
    workers = []
    for share in filter(None, shares):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, host, port, share), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))
    for _, pipe in workers:
        pipe.recv()
    start_s = time.monotonic() + START_DELAY_S
    for _, pipe in workers:
        pipe.send(start_s)
    outcomes = [outcome for _, pipe in workers for outcome in pipe.recv()]
    for process, _ in workers:
        process.join()
    return sorted(outcomes, key=lambda outcome: outcome.index)


def _work(pipe: Connection, host: str, port: int, calls: list[Call]) -> None:
    client = Client(host, port)
    pipe.send("ready")
    pipe.send(client.run(calls, pipe.recv()))
