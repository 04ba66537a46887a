"""Process start to first token: ``python -m bench.startup --model smollm2-135m``; flags that are not its own go to the
server.

Each try starts ``python -m server`` anew, polls /ready, and streams one short completion until its first token. The
phases are the server's own ledger (``pyengine:startup_seconds`` in /metrics). The first try of a machine may read from
disk what the others find in memory, so it is kept apart: ``first_try_s``; of the others the median counts.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
import time

from bench.serving import records
from bench.serving.online import Target, check, probe_apart
from bench.serving.server_process import ServerProcess, get
from bench.serving.workloads import Item

PHASE = re.compile(r'^pyengine:startup_seconds\{.*phase="([^"]+)"\} (\S+)$', re.MULTILINE)
PROMPT = list(range(100, 132))  # any short one


def one_start(flags: str) -> tuple[float, dict[str, float], Target]:
    """Seconds to the first token, the ledger, and what was asked."""
    with ServerProcess(flags, quiet=True) as server:
        target = Target(server.url, None, None, None, sampled=False)
        asked_s = time.monotonic() - server.started_s
        outcome = target.run_here(Item(PROMPT, 8))
        check([outcome], 1)
        ledger = {name: float(value) for name, value in PHASE.findall(get(f"{server.url}/metrics"))}
        ledger["first token"] = outcome.event_s[0]
        return asked_s + outcome.event_s[0], ledger, target


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="tries besides the first")
    parser.add_argument("--save", action="store_true", help="append to bench/results")
    args, flags = parser.parse_known_args(argv)
    probed = probe_apart()
    tries = [one_start(shlex.join(flags)) for _ in range(args.repeats + 1)]
    target, later = tries[0][2], tries[1:] or tries
    seconds = [total for total, _, _ in later]
    phases = {name: round(statistics.median(ledger[name] for _, ledger, _ in later), 3) for name in later[0][1]}
    record = {
        "shape": target.shape,
        "workload": "start",
        "mode": "start",
        "served_by": target.served_by,
        "seconds": round(statistics.median(seconds), 3),
        "seconds_all": [round(s, 3) for s in seconds],
        "first_try_s": round(tries[0][0], 3),
        "phases_s": phases,
        "flags": shlex.join(flags),
        **probed,
        **records.origin(),
    }
    print(f"{target.shape}: first token {record['seconds']} s after the start {record['seconds_all']}")
    print(f"  the first try: {record['first_try_s']} s; phases {phases}")
    if args.save:
        print(f"saved to {records.save([record], probed['device'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
