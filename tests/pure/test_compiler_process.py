"""Grammars are compiled in processes of their own: what ends one is a refusal, and what comes next is served."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

from pyengine.errors import RequestError
from pyengine.structured import compiler_process, grammar
from pyengine.structured.compiler import compile_source
from pyengine.structured.compiler_process import MAX_IDLE, CompilerEnded, CompilerProcesses
from pyengine.structured.grammar import compile_grammar
from server.service import may_ask_for_a_grammar


@pytest.fixture
def processes():
    made = CompilerProcesses()
    yield made
    made._forget()


def the_idle(processes: CompilerProcesses) -> int:
    (process,) = processes._idle
    return process._pid


def test_the_same_as_in_this_process(processes):
    for arguments in (("regex", "a+", None), ("regex", "(", None), ("json", '{"type": "string"}', "")):
        assert processes.compile(*arguments) == compile_source(*arguments)
    assert len(processes._idle) == 1  # one after the other, all by one


@contextmanager
def ended_while_asked(pid: int, end: signal.Signals):
    """The process stops, is asked something meanwhile, and ends."""
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.2, lambda: (os.kill(pid, end), os.kill(pid, signal.SIGCONT)))
    timer.start()
    yield
    timer.join()


def test_who_ended_between_two_sources_is_replaced(processes):
    processes.compile("regex", "a", None)
    pid = the_idle(processes)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.compile("regex", "b", None) == compile_source("regex", "b") and the_idle(processes) != pid


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        (signal.SIGKILL, "ends the process that checks it"),
        (signal.SIGSEGV, "ends the process that checks it"),
        (signal.SIGXCPU, "takes more than 2 seconds"),
    ],
)
def test_what_ends_a_process_is_refused_alone(processes, end, problem):
    processes.compile("regex", "a", None)
    with ended_while_asked(the_idle(processes), end), pytest.raises(CompilerEnded, match=problem):
        processes.compile("regex", "b", None)
    assert not processes._idle
    assert processes.compile("regex", "b", None) == compile_source("regex", "b")


def test_a_process_that_does_not_answer_is_given_up(processes, monkeypatch):
    monkeypatch.setattr(compiler_process, "_TIMEOUT", struct.pack("ll", 1, 0))
    processes.compile("regex", "a", None)
    os.kill(the_idle(processes), signal.SIGSTOP)
    with pytest.raises(RequestError, match="within 20 seconds") as caught:
        processes.compile("regex", "b", None)
    assert caught.value.status == 503 and not processes._idle
    assert processes.compile("regex", "b", None)[0]


def test_threads_do_not_wait_for_each_other(processes):
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda i: processes.compile("regex", f"a{{{i}}}", None), range(1, 65)))
    assert results == [compile_source("regex", f"a{{{i}}}") for i in range(1, 65)]
    assert 1 <= len(processes._idle) <= MAX_IDLE


def test_a_process_is_bounded_in_time_and_memory(processes):
    processes.compile("regex", "a", None)
    limits = {}
    with open(f"/proc/{the_idle(processes)}/limits") as lines:
        for line in lines:
            name, soft = line[:26].strip(), line[26:47].strip()
            limits[name] = soft
    assert 2 <= int(limits["Max cpu time"]) <= 4 and limits["Max address space"] == str(1 << 30)
    assert limits["Max core file size"] == "0"


def test_a_fork_has_processes_of_its_own(processes):
    processes.compile("regex", "a", None)
    pid = os.fork()
    if pid == 0:
        fine = not processes._idle and processes.compile("regex", "b", None) == compile_source("regex", "b")
        processes._forget()
        os._exit(0 if fine else 1)
    assert processes.compile("regex", "c", None) == compile_source("regex", "c")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_ends_with_its_parent():
    code = (
        "from pyengine.structured.compiler_process import CompilerProcesses; made = CompilerProcesses();"
        "made.compile('regex', 'a', None); print(made._idle[0]._pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_grammar_that_ends_its_process_is_a_400_and_may_be_tried_again(monkeypatch, processes):
    monkeypatch.setattr(grammar, "_compiled", lru_cache(processes.compile))
    compile_grammar({"regex": "a"})
    text = r"structured_outputs\.regex cannot be used: it ends the process"
    with ended_while_asked(the_idle(processes), signal.SIGKILL), pytest.raises(RequestError, match=text) as caught:
        compile_grammar({"regex": "b"})
    assert caught.value.status == 400 and compile_grammar({"regex": "b"})


def test_a_process_that_does_not_start_leaves_nothing(processes, monkeypatch):
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(compiler_process, "_TIMEOUT", struct.pack("ll", 0, 1000))
    for _ in range(2):
        with pytest.raises(RequestError, match="could not be checked"):
            processes.compile("regex", "a", None)
    monkeypatch.setattr(compiler_process, "_TIMEOUT", struct.pack("ll", 20, 0))
    monkeypatch.setattr(compiler_process, "_CODE", "raise SystemExit(7)")
    with pytest.raises(RequestError, match=r"does not start \(exit code 7") as caught:
        processes.compile("regex", "a", None)
    assert caught.value.status == 503 and set(os.listdir("/proc/self/fd")) == before


def test_it_finds_modules_as_its_parent_does(tmp_path):
    """Not in the working directory, where anything may lie."""
    (tmp_path / "json.py").write_text("raise SystemExit('wrong module')")
    root = str(Path(compiler_process.__file__).parents[2])
    code = (
        f"import sys; sys.path[0:1] = [{root!r}]; from pyengine.structured.grammar import compile_grammar;"
        "print(len(compile_grammar({'regex': 'a'})))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environment, text=True)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


@pytest.mark.parametrize(
    ("body", "may"),
    [
        (b'{"prompt": "a", "structured_outputs": {"regex": "a"}}', True),
        (b'{"prompt": "a", "structured_outp\\u0075ts": {"regex": "a"}}', True),
        (b'{"tools": [{"function": {"strict": true}}]}', True),
        (b'{"prompt": "caf\\u00e9 \\ud83d\\ude00 \\u0000", "stop": ["x"]}', False),
    ],
)
def test_a_grammar_is_never_compiled_where_streams_wait(body, may):
    assert may_ask_for_a_grammar(body) is may
