"""The plots of docs/benchmarks.md, from the same records: measured against others and the roofline; latency against
load. A plot is made where there is something to show, and nothing is shown that is not in a record or in ``anchors``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench import anchors
from bench.svg import COLOURS, Bar, Curve, bars, curves

MIN_RATES = 3  # points that make a curve
LATENCIES = {
    "TTFT p99": "ttft_p99_ms",
    "TTFT p50": "ttft_p50_ms",
    "ITL p99": "itl_p99_ms",
    "ITL p50": "itl_p50_ms",
}


def against_anchors(records: list[dict], machine_text: Callable[[dict], str]) -> str | None:
    """Our time over vLLM's, with the roofline's place in it; for a device that the anchors know, and a KV cache of the
    model's dtype, which they had.
    """
    compared = [
        (record, *anchors.SECONDS[record["shape"], record["workload"]])
        for record in records
        if "mode" not in record
        and record["device"] == anchors.DEVICE
        and record.get("kv_cache_dtype", record["dtype"]) == record["dtype"]
        and (record["shape"], record["workload"]) in anchors.SECONDS
    ]
    if not compared:
        return None
    rows = []
    for record, theirs, roofline in compared:
        marks = [(1.0, COLOURS[1])] + ([(roofline / theirs, COLOURS[2])] if roofline else [])
        text = f"{record['seconds']:.3g} s"
        rows.append(Bar(f"{record['shape']} {record['workload']}", record["seconds"] / theirs, text, marks))
    theirs = machine_text(anchors.PROBED)
    note = f"Machine in the same run: ours {machine_text(compared[0][0])}; theirs {theirs}. Not scaled."
    legend = [("pyengine", COLOURS[0]), (anchors.SOURCE, COLOURS[1]), ("roofline", COLOURS[2])]
    return bars(f"Time, as a share of {anchors.SOURCE}'s", note, rows, legend)


def latency_against_load(records: list[dict], machine_text: Callable[[dict], str]) -> dict[str, str]:
    """One plot for each shape and server with enough ``rate:R:N`` records, by name."""
    groups: dict[tuple[str, str], dict[float, dict]] = {}
    for record in records:
        name, _, rest = record["workload"].partition(":")
        if name == "rate" and record.get("mode") == "http":
            rate = float(rest.split(":")[0])
            groups.setdefault((record["shape"], record["served_by"]), {})[rate] = record
    plots = {}
    for (shape, served_by), by_rate in groups.items():
        if len(by_rate) < MIN_RATES:
            continue
        lines = [
            Curve(name, [(rate, record[key]) for rate, record in by_rate.items()]) for name, key in LATENCIES.items()
        ]
        last = next(reversed(by_rate.values()))
        note = f"{last['device']}; {machine_text(last)}; lengths as of conversations (see the table of workloads)"
        title = f"{shape} by {served_by}: latency against load"
        plots[f"load-{shape}-{served_by.split()[0]}"] = curves(title, note, "requests a second", "ms", lines)
    return plots


def write(records: list[dict], device: str, folder: Path, machine_text: Callable[[dict], str]) -> list[Path]:
    """The files written for one device's newest records."""
    plots = latency_against_load(records, machine_text)
    compared = against_anchors(records, machine_text)
    if compared is not None:
        plots["against-anchors"] = compared
    folder.mkdir(exist_ok=True)
    paths = []
    for name, text in sorted(plots.items()):
        paths.append(folder / f"{device}-{name}.svg")
        paths[-1].write_text(text)
    return paths
