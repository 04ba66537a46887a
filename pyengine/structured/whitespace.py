"""White space between the tokens of JSON. Without a bound a model that cannot decide may write nothing else until its
length is up.
"""

from __future__ import annotations

import json
from typing import Any

BOUNDED = r"[ \t\n\r]{0,100}"  # a pattern of llguidance's; room for any indentation


def json_rule(schema: dict[str, Any]) -> str:
    """JSON by a schema as a part of a Lark grammar, its white space bounded."""
    return "%json " + json.dumps({"x-guidance": {"whitespace_pattern": BOUNDED}, **schema})
