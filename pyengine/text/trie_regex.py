"""Many literal strings as one regular expression that looks at each character of a text a bounded number of times.

A plain alternation tries every literal at every position; factored by common prefixes it fails at the first character
that no literal begins with. Longer literals win over their prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def compile_literals(literals: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches exactly the given non-empty strings, the longest at a position."""
    root: dict = {}
    for literal in literals:
        node = root
        for char in literal:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_render(root))


def _render(root: dict) -> str:
    """Bottom-up without recursion: a chain of single children becomes plain text, a branch becomes a group."""
    rendered: dict[int, str] = {}
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if not ready:
            stack.append((node, True))
            stack.extend((child, False) for char, child in node.items() if char)
            continue
        branches = [re.escape(char) + rendered.pop(id(child)) for char, child in node.items() if char]
        body = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})" if branches else ""
        rendered[id(node)] = f"(?:{body})?" if body and "" in node else body
    return rendered[id(root)]
