"""Where measurements are kept: bench/results/<device>.json, a list of records, one a line, appended to and never
rewritten.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

from bench.serving.machine import commit

RESULTS = Path(__file__).resolve().parent.parent / "results"


def origin() -> dict:
    """What every record ends with: the commit and the day it was made."""
    return {"commit": commit(), "date": datetime.date.today().isoformat()}


def file_name(device_name: str) -> str:
    """Of a device's records: "NVIDIA H100 80GB HBM3" is nvidia-h100.json; the records have the whole name."""
    model = re.sub(r"\s+\d+ ?GB\b.*", "", device_name)
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") + ".json"


def save(records: list[dict], device_name: str) -> Path:
    path = RESULTS / file_name(device_name)
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else []
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in [*old, *records]) + "\n]\n")
    return path
