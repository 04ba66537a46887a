"""Who may import whom (docs/architecture.md): the arrows that keep the server light and the scheduler pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# package or module -> prefixes that it must never import, directly or through anything below it
FORBIDDEN = {
    "server": (
        "torch",
        "pyengine.engine",
        "pyengine.engine_proc",
        "pyengine.runner",
        "pyengine.sched",
        "pyengine.kv",
        "pyengine.ops",
        "pyengine.llm",
    ),
    "pyengine.text": (
        "torch",
        "transformers",
        "flask",
        "gevent",
        "pyengine.engine",
        "pyengine.runner",
        "pyengine.sched",
        "pyengine.ops",
    ),
    "pyengine.sched": ("torch", "pyengine.runner", "pyengine.ops", "pyengine.models", "pyengine.text"),
    "pyengine.kv": ("torch", "numpy", "pyengine.runner", "pyengine.ops", "pyengine.sched.scheduler"),
    "pyengine.runner": (
        "pyengine.sched.scheduler",
        "pyengine.sched.sequence",
        "pyengine.kv",
        "pyengine.engine",
        "pyengine.text",
    ),
    "pyengine.models": ("pyengine.runner", "pyengine.sched", "pyengine.engine", "transformers"),
    "pyengine.layers": ("pyengine.runner", "pyengine.sched", "pyengine.config", "pyengine.models"),
    "pyengine.ops": ("pyengine.layers", "pyengine.models", "pyengine.runner", "pyengine.sched", "pyengine.config"),
    "pyengine.batch": ("flask", "gevent", "zmq", "server.app", "server.http", "server.service", "server.launcher"),
    "pyengine.protocol": ("torch", "numpy"),
}


def _modules(package: str) -> list[Path]:
    path = ROOT / package.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _imports(path: Path) -> set[str]:
    """Modules that ``path`` imports at run time; those under ``if TYPE_CHECKING`` are types only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_follow_the_arrows(package):
    modules = _modules(package)
    assert modules and all(path.exists() for path in modules)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules
        for name in sorted(_imports(path))
        for prefix in FORBIDDEN[package]
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module",
    [
        "server.launcher",
        "pyengine",
        "pyengine.sched.scheduler",
        "pyengine.text.processor",
        "pyengine.batch.answers",
        "pyengine.runner.kv_memory",
    ],
)
def test_torch_is_not_loaded(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_binding_includes_torch():
    wrong = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh")
        and "csrc/torch" not in str(path)
        and any(mark in path.read_text() for mark in ("#include <torch", "#include <ATen", '#include "torch'))
    ]
    assert not wrong, wrong


def test_public_headers_need_no_cuda():
    wrong = [
        path.name
        for path in (ROOT / "csrc/include/pe").glob("*.h")
        if "cuda_runtime" in path.read_text() or "<<<" in path.read_text()
    ]
    assert not wrong, wrong


def test_dangerous_constructs_are_absent():
    """No unpickling, no evaluation, no torch.load anywhere in what we ship."""
    banned_calls = {"eval", "exec"}
    wrong = []
    for path in [*(ROOT / "pyengine").rglob("*.py"), *(ROOT / "server").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned_calls:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
        wrong += [
            f"{path.relative_to(ROOT)} uses {name}"
            for name in _imports(path)
            if name.split(".")[0] in ("pickle", "shelve", "marshal")
        ]
        if "torch.load(" in path.read_text():
            wrong.append(f"{path.relative_to(ROOT)} calls torch.load")
    assert not wrong, "\n".join(wrong)
