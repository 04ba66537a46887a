"""``python -m pyengine.batch in.jsonl out.jsonl``: answer a file of requests. Run it again to go on where it ended."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pyengine import __version__
from pyengine.batch.lines import BadLine, OutputFile, parse_line, read_lines, succeeded
from pyengine.batch.pipeline import Pipeline
from pyengine.config import EngineConfig
from pyengine.errors import ConfigError, PyengineError
from pyengine.options import add_options, config_of
from pyengine.text.unknown_fields import POLICIES

SOME_FAILED = 1
INTERRUPTED = 130

EPILOG = """A line of the input: {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
A line of the output: {"id": ..., "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}

Lines whose custom_id is already in the output are not run again. Exit code: 0 when every line has been answered with a
200, 1 when some were refused or failed, 2 for wrong options or files, 3 for a broken model, 130 after Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyengine.batch",
        description="pyengine: answer a file of requests in OpenAI's batch format.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyengine {__version__}")
    parser.add_argument("input", type=Path, help="file of requests, one a line")
    parser.add_argument("output", type=Path, help="file for the answers; what it has already is kept")
    parser.add_argument("--served-model-name", help="what bodies call the model; default: the model as given")
    parser.add_argument(
        "--unknown-fields",
        choices=POLICIES,
        default="error",
        help="warn: fields that the API does not know are left out, and listed in ignored_fields of the answer",
    )
    add_options(parser.add_argument_group("model and engine"), EngineConfig)
    return parser


def main(argv: list[str]) -> int:
    """Answer what is not answered yet; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        # Nobody watches the tokens come: no step is kept short for them.
        config = config_of(EngineConfig, {"itl_target_ms": 0.0, **vars(arguments)})
        return _run(arguments, config)
    except PyengineError as error:
        print(f"pyengine: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace, config: EngineConfig) -> int:
    if arguments.output.exists() and arguments.input.exists() and arguments.output.samefile(arguments.input):
        raise ConfigError("input and output are the same file")
    num_lines = sum(1 for _ in read_lines(arguments.input))
    output = OutputFile(arguments.output)
    try:
        todo = list(_todo(arguments.input, output))
        summary = _Summary(num_lines, num_lines - len(todo), output.num_failed_before)
        if todo:
            _answer(arguments, config, set(todo), output, summary)
    finally:
        output.close()
    summary.show()
    return INTERRUPTED if summary.interrupted else SOME_FAILED if summary.num_failed else 0


def _todo(path: Path, output: OutputFile) -> Iterator[int]:
    """Numbers of the lines that have no answer yet. An answer with a custom_id is the first line's that has it."""
    seen: set[str] = set()
    for number, text in read_lines(path):
        with contextlib.suppress(BadLine):
            custom_id = parse_line(text).custom_id
            is_first = custom_id not in seen
            seen.add(custom_id)
            if is_first and custom_id in output.done:
                continue
        if number not in output.done:
            yield number


class _Summary:
    """What became of the lines."""

    def __init__(self, num_lines: int, num_done_before: int, num_failed_before: int):
        self._num_lines = num_lines
        self._num_done_before = num_done_before
        self._begin_s = time.monotonic()
        self.num_answered = 0
        self.num_failed = num_failed_before
        self.num_output_tokens = 0
        self.interrupted = False

    def show(self) -> None:
        seconds = time.monotonic() - self._begin_s
        num_done = self._num_done_before + self.num_answered
        print(
            f"pyengine: {num_done} of {self._num_lines} lines answered, {self.num_failed} of them with an error; "
            f"{self._num_done_before} were done before; {self.num_output_tokens} tokens in {seconds:.1f} s "
            f"({self.num_output_tokens / max(seconds, 1e-9):.0f} tokens/s)",
            file=sys.stderr,
        )
        if self.interrupted:
            print("pyengine: interrupted; the same command goes on from here", file=sys.stderr)


def _answer(
    arguments: argparse.Namespace, config: EngineConfig, todo: set[int], output: OutputFile, summary: _Summary
) -> None:
    from pyengine.llm import LLM  # after the options and files: mistakes in them are found at once
    from pyengine.text.processor import TextProcessor

    llm = LLM.of(config)
    model = arguments.served_model_name or config.model
    text = TextProcessor(llm.text.text, llm.text.limits, [model])
    pipeline = Pipeline(llm.engine, text, model, arguments.unknown_fields == "warn", output.done)
    lines = ((number, line) for number, line in read_lines(arguments.input) if number in todo)
    with tqdm(total=len(todo), desc="lines", dynamic_ncols=True) as bar:
        try:
            for answer in pipeline.run(lines):
                output.write(answer)
                summary.num_answered += 1
                summary.num_failed += not succeeded(answer)
                bar.update()
        except KeyboardInterrupt:
            summary.interrupted = True
    summary.num_output_tokens = pipeline.num_output_tokens


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
