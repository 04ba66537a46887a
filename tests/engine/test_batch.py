"""``python -m pyengine.batch``: answers as over HTTP, errors that stay in their line, and going on after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyengine import LLM
from pyengine.batch.__main__ import main
from pyengine.batch.pipeline import Pipeline
from pyengine.text.processor import TextProcessor

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
FLAGS = ["--device", "cpu", "--max-num-seqs", "8", "--max-model-len", "256", "--kv-cache-memory", "64MiB"]
GREEDY = {"model": MODEL, "temperature": 0}


def line(custom_id: str, url: str, **body) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


CHAT = line("chat", "/v1/chat/completions", **GREEDY, messages=FRANCE, max_tokens=20)
GOOD = [
    CHAT,
    line("text", "/v1/completions", **GREEDY, prompt=["The capital of France is", "A b"], n=2, max_tokens=4),
    line("response", "/v1/responses", **GREEDY, input="What is the capital of France?", max_output_tokens=20),
    line("message", "/v1/messages", **GREEDY, messages=FRANCE, max_tokens=20),
    line("embeddings", "/v1/embeddings", model=MODEL, input=["The sea", "A b", "The sea"], dimensions=64),
    line(
        "json",
        "/v1/chat/completions",
        **GREEDY,
        messages=FRANCE,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["Paris", "Bern"]}}},
    ),
]


def write(path: Path, lines: list) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def read(path: Path) -> dict[str, dict]:
    answers = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({answer["custom_id"] for answer in answers}) == len(answers)
    return {answer["custom_id"]: answer for answer in answers}


@pytest.fixture(scope="module")
def llm():
    return LLM(MODEL, device="cpu", max_num_seqs=8, max_model_len=256, kv_cache_memory="64MiB")


def answers_of(llm: LLM, lines: list, **options) -> dict[str | None, dict]:
    pipeline = Pipeline(llm.engine, TextProcessor(llm.text.text, llm.text.limits, [MODEL]), MODEL, **options)
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    answers = list(pipeline.run(iter([(i, text.encode()) for i, text in enumerate(texts, 1)])))
    assert len(answers) == len(lines) and not llm.engine.has_work
    return {answer["custom_id"]: answer for answer in answers}


def body_of(answer: dict) -> dict:
    assert answer["error"] is None and answer["id"].startswith("batch_req_")
    assert answer["response"]["status_code"] == 200, answer
    return answer["response"]["body"]


def test_every_endpoint_answers_in_its_own_shape(llm):
    answers = answers_of(llm, GOOD)
    chat = body_of(answers["chat"])
    assert "Paris" in chat["choices"][0]["message"]["content"] and chat["object"] == "chat.completion"
    assert chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"]
    text = body_of(answers["text"])
    assert [choice["index"] for choice in text["choices"]] == [0, 1, 2, 3]
    assert text["choices"][0]["text"] == text["choices"][1]["text"] and "Paris" in text["choices"][0]["text"]
    assert body_of(answers["response"])["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert body_of(answers["message"])["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    embedded = body_of(answers["embeddings"])
    first, second, third = (each["embedding"] for each in embedded["data"])
    assert len(first) == 64 and first == third != second and embedded["usage"]["prompt_tokens"] > 0
    assert first == llm.embed("The sea", dimensions=64)[0].outputs.embedding
    assert json.loads(body_of(answers["json"])["choices"][0]["message"]["content"]) in ("Paris", "Bern")


def test_errors_stay_in_their_line(llm):
    wrong = {
        "range": line("range", "/v1/chat/completions", messages=FRANCE, temperature=-1),
        "unknown": line("unknown", "/v1/completions", prompt="a", wat=1),
        "long": line("long", "/v1/completions", prompt="word " * 400),
        "model": line("model", "/v1/completions", prompt="a", model="gpt-4"),
        "stream": line("stream", "/v1/completions", prompt="a", stream=True),
        "anthropic": line("anthropic", "/v1/messages", messages=FRANCE),
        "url": line("url", "/v1/images", prompt="a"),
        "method": {**CHAT, "custom_id": "method", "method": "GET"},
        "dimensions": line("dimensions", "/v1/embeddings", input="a", dimensions=4096),
        "none": line("none", "/v1/completions", prompt="a", allowed_token_ids=[2], min_tokens=2),
    }
    answers = answers_of(llm, [*wrong.values(), CHAT])
    status = {name: answers[name]["response"]["status_code"] for name in wrong}
    expected = {**dict.fromkeys(wrong, 400), "model": 404, "url": 404, "method": 405}
    assert status == expected
    assert answers["range"]["response"]["body"]["error"]["param"] == "temperature"
    assert answers["anthropic"]["response"]["body"]["type"] == "error"
    assert "Paris" in body_of(answers["chat"])["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_line"),
        ("5", "invalid_line"),
        ('{"custom_id": "x"}', "invalid_line"),
        (json.dumps({**CHAT, "extra": 1}), "invalid_line"),
        (json.dumps(CHAT), "duplicate_custom_id"),
    ],
)
def test_lines_that_are_no_requests_are_named(llm, text, code):
    pipeline = Pipeline(llm.engine, llm.text, MODEL)
    answers = list(pipeline.run(iter([(1, json.dumps(CHAT).encode()), (7, text.encode())])))
    (bad,) = [answer for answer in answers if answer["response"] is None]
    assert bad["error"]["code"] == code and bad["error"]["line"] == 7 and len(answers) == 2


def test_unknown_fields_can_be_left_out_and_are_listed(llm):
    answers = answers_of(llm, [line("a", "/v1/completions", prompt="a", max_tokens=1, wat=1)], takes_unknown=True)
    assert answers["a"]["response"]["status_code"] == 200 and answers["a"]["response"]["ignored_fields"] == ["wat"]


def test_hundreds_of_lines_in_a_bounded_window(llm):
    taken = 0

    def lines():
        nonlocal taken
        for i in range(300):
            taken += 1
            wish = {"max_tokens": 1 + i % 5, "ignore_eos": True}
            yield i + 1, json.dumps(line(f"{i}", "/v1/completions", prompt=f"Number {i}", **wish)).encode()

    pipeline = Pipeline(llm.engine, llm.text, MODEL)
    for done, answer in enumerate(pipeline.run(lines()), 1):
        assert answer["response"]["status_code"] == 200 and taken - done <= 16 + 8
    assert done == 300 and pipeline.num_output_tokens == sum(1 + i % 5 for i in range(300))


def test_the_program_resumes_and_repairs(tmp_path, capsys):
    source, target = write(tmp_path / "in.jsonl", [*GOOD, "{"]), tmp_path / "out.jsonl"
    assert main([str(source), str(target), *FLAGS]) == 1  # the last line is none
    assert "7 of 7 lines answered, 1 of them with an error; 0 were done before" in capsys.readouterr().err
    whole = read(target)
    kept = target.read_text().splitlines(keepends=True)
    target.write_text("".join(kept[:3]) + kept[3][: len(kept[3]) // 2])  # a crash in the middle of a line
    assert main([str(source), str(target), *FLAGS]) == 1
    assert "7 of 7 lines answered, 1 of them with an error; 3 were done before" in capsys.readouterr().err
    resumed = read(target)
    assert target.read_text().startswith("".join(kept[:3])) and resumed.keys() == whole.keys()
    assert body_of(resumed["chat"])["choices"] == body_of(whole["chat"])["choices"]
    before = target.read_bytes()
    assert main([str(source), str(target), *FLAGS]) == 1 and target.read_bytes() == before  # nothing is left to do


def test_a_custom_id_that_comes_twice_is_answered_once_whatever_was_written_before(tmp_path, capsys):
    twins = [line("a", "/v1/completions", **GREEDY, prompt=prompt, max_tokens=2) for prompt in ("One", "Two")]
    other = line("b", "/v1/completions", **GREEDY, prompt="Three", max_tokens=2)
    source, whole = write(tmp_path / "in.jsonl", [twins[0], other, "{", twins[1]]), tmp_path / "whole.jsonl"
    flags = ["--model", MODEL, *FLAGS]
    assert main([str(source), str(whole), *flags]) == 1
    texts = whole.read_text().splitlines()

    def key(text: str) -> tuple:
        answer = json.loads(text)
        return answer["custom_id"], (answer["error"] or {}).get("line")

    assert sorted(map(key, texts), key=str) == sorted([("a", None), ("b", None), (None, 3), ("a", 4)], key=str)
    for kept in ([("a", 4)], [("a", None)], [("a", 4), (None, 3)], []):
        again = tmp_path / "again.jsonl"
        again.write_text("".join(text + "\n" for text in texts if key(text) in kept))
        assert main([str(source), str(again), *flags]) == 1
        assert sorted(map(key, again.read_text().splitlines()), key=str) == sorted(map(key, texts), key=str)
        assert "4 of 4 lines answered" in capsys.readouterr().err


def test_what_is_no_output_is_never_touched(tmp_path, capsys):
    source, target = write(tmp_path / "in.jsonl", [CHAT]), tmp_path / "notes.txt"
    target.write_text("my notes\nsecond line\n")
    assert main([str(source), str(target)]) == 2 and target.read_text() == "my notes\nsecond line\n"
    assert main([str(source), str(source)]) == 2
    assert main([str(tmp_path / "missing"), str(tmp_path / "out")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_killed_run_loses_nothing_that_was_written(tmp_path):
    lines = [line(f"{i}", "/v1/completions", **GREEDY, prompt=f"Number {i} is", max_tokens=24) for i in range(60)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pyengine.batch", str(source), str(target), *FLAGS]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (target.exists() and target.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = target.read_bytes().rpartition(b"\n")[0].splitlines()
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} were done before" in again.stderr and "60 of 60 lines answered, 0" in again.stderr
    assert target.read_bytes().splitlines()[: len(done)] == done and len(read(target)) == 60
