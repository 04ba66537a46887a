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


def save(records: list[dict], device_name: str) -> Path:
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json")
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else []
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in [*old, *records]) + "\n]\n")
    return path
