"""Libraries for structured output, side by side on a CPU: ``python -m bench.sampling.grammars``.

For each schema: milliseconds from the text of a schema that nobody has seen to its first mask, then microseconds for a
mask and for taking in a token, at each token of an instance. llguidance is what pyengine uses; xgrammar is compared
with where it is installed (it is no dependency). The vocabularies: SmolLM2's, and a stand-in of 128,256 tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.stand_in import write_tokenizer
from pyengine.models.resolve import default_model_path
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory
from pyengine.text.tokenizer import Tokenizer, load_tokenizer

ROUNDS = 3
TEXT = "It was seven in the evening, and the harbour lay quiet under the first snow of the year. "


def an_object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    closed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed, **more}


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
PERSON = an_object({"name": STRING, "age": INTEGER, "email": STRING})
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": an_object({"v": INTEGER, "next": {"type": "array", "items": {"$ref": "#/$defs/node"}}})},
}
COLOURS = [f"colour {i} of the long list" for i in range(300)]
TOOLS = {
    "anyOf": [
        an_object({"name": {"const": f"tool_{i}"}, "arguments": an_object({f"field_{j}": STRING for j in range(6)})})
        for i in range(40)
    ]
}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "a person": (PERSON, {"name": "Ada Lovelace", "age": 36, "email": "ada@example.org"}),
    "long text": (an_object({"text": STRING}), {"text": TEXT * 6}),
    "short texts": (
        {"type": "array", "items": {"type": "string", "maxLength": 40}},
        ["harbour", "snow of the year", "seven in the evening"] * 8,
    ),
    "numbers": ({"type": "array", "items": NUMBER}, [1, -2.5, 3e10, 0.125] * 20),
    "rows": ({"type": "array", "items": PERSON}, [{"name": "Ada", "age": 36, "email": "a@b.org"}] * 12),
    "any object": ({"type": "object"}, {"a": [1, {"b": None}], "c": {"d": "text", "e": [True, False]}}),
    "a tree": (TREE, {"v": 1, "next": [{"v": 2, "next": [{"v": 3, "next": []}] * 4}] * 3}),
    "300 choices": ({"type": "array", "items": {"enum": COLOURS}}, COLOURS[::17]),
    "a pattern": (
        an_object({"date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, "id": STRING}),
        {"date": "2026-11-25", "id": "x"},
    ),
    "40 tools": (TOOLS, {"name": "tool_17", "arguments": {f"field_{j}": TEXT[:30] for j in range(6)}}),
}

Matcher = tuple[Callable[[], Any], Callable[[int], bool]]  # fills a mask; takes a token


class LLGuidance:
    name = "llguidance"

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._factory = GrammarFactory(tokenizer, vocab_size)
        self._masks = self._factory.masks(1)
        assert self._factory._vocabulary is not None  # prepared now

    def matcher(self, schema: str) -> Matcher:
        matcher = self._factory.make(compile_grammar({"json": schema}))
        if matcher.error:
            raise ValueError(matcher.error)
        return lambda: matcher.fill_mask(self._masks, 0), matcher.accept


class XGrammar:
    name = "xgrammar"

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        import xgrammar

        self._library = xgrammar
        vocabulary = [tokenizer.id_to_bytes(token_id) for token_id in range(vocab_size)]
        info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=list(tokenizer.eos_token_ids))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def matcher(self, schema: str) -> Matcher:
        matcher = self._library.GrammarMatcher(self._compiler.compile_json_schema(schema))
        return lambda: matcher.fill_next_token_bitmask(self._mask, 0), matcher.accept_token


def measure(library: LLGuidance | XGrammar, tokenizer: Tokenizer, case: str) -> tuple[float, np.ndarray, np.ndarray]:
    """Least of ``ROUNDS`` of seconds to the first mask; microseconds of each mask and of each token taken."""
    schema, instance = CASES[case]
    ids = tokenizer.encode(json.dumps(instance), add_special_tokens=False)
    starts, masks, tokens = [], [], []
    for number in range(ROUNDS):
        source = json.dumps({**schema, "title": f"{case} {number}"})  # never seen before
        begin = time.perf_counter()
        fill, accept = library.matcher(source)
        fill()
        starts.append(time.perf_counter() - begin)
        for token_id in ids:
            begin = time.perf_counter()
            fill()
            filled = time.perf_counter()
            if not accept(token_id):
                raise SystemExit(f"{library.name} does not accept an instance of {case!r}: {json.dumps(instance)[:80]}")
            masks.append(filled - begin)
            tokens.append(time.perf_counter() - filled)
    return min(starts), np.asarray(masks) * 1e6, np.asarray(tokens) * 1e6


def vocabularies() -> dict[str, Tokenizer]:
    found = {"SmolLM2": load_tokenizer(default_model_path())} if default_model_path().is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), 128_256)
        return {**found, "stand-in": load_tokenizer(Path(folder))}


def main() -> int:
    kinds = [LLGuidance, *([XGrammar] if find_spec("xgrammar") else [])]
    for name, tokenizer in vocabularies().items():
        for kind in kinds:
            begin = time.perf_counter()
            library = kind(tokenizer, tokenizer.vocab_size)
            prepared = time.perf_counter() - begin
            print(
                f"{kind.name}, {name} of {tokenizer.vocab_size} tokens, prepared in {prepared * 1e3:.0f} ms", flush=True
            )
            everything = []
            for case in CASES:
                start, masks, tokens = measure(library, tokenizer, case)
                everything.append(masks)
                print(
                    f"  {case:12} first mask {start * 1e3:8.2f} ms | mask us mean {masks.mean():7.1f} "
                    f"p99 {np.quantile(masks, 0.99):8.1f} max {masks.max():9.1f} | token us {tokens.mean():5.1f}",
                    flush=True,
                )
            whole = np.concatenate(everything)
            print(f"  all masks: mean {whole.mean():.1f} us, p99 {np.quantile(whole, 0.99):.1f}, max {whole.max():.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
