"""The page that draws the metrics: what is served and to whom, and what its scripts make of real numbers (by node,
where there is one).
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pyengine.protocol import Stats, TokenDelta
from server import dashboard
from server.app import create_app
from server.config import ServerConfig
from server.metrics import Metrics
from server.state import ServerState

SCRIPTS = Path(__file__).parent / "dashboard_scripts.mjs"
PATHS = ["/dashboard", *(f"/dashboard/{name}" for key, (name, _) in dashboard.FILES.items() if key != "page")]


def make_client(**options):
    return create_app(ServerState(), lambda: None, ServerConfig(**options)).test_client()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_all_that_the_page_asks_for_is_served():
    client = make_client()
    asked = set(re.findall(r'(?:href|src)="(/[^"]+)"', client.get("/dashboard").text))
    for name in ("main.js", "metrics.js", "chart.js"):
        text = resources.files(dashboard).joinpath(name).read_text()
        asked |= {f"/dashboard/{imported}" for imported in re.findall(r'from "\./([^"]+)"', text)}
    assert asked == set(PATHS) - {"/dashboard"}
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 200 and answer.data
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert client.get("/dashboard/other.js").status_code == 404
    assert client.get("/dashboard/../access.py").status_code == 404


def test_nothing_of_the_page_comes_from_elsewhere_or_runs_text():
    for name, _ in dashboard.FILES.values():
        text = resources.files(dashboard).joinpath(name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//" not in text.replace("// ", "").replace("/*", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=", text)


@pytest.mark.parametrize("path", [*PATHS, "/metrics"])
def test_a_browser_asks_for_the_key(path):
    client = make_client(api_key=("sk-first",))
    refused = client.get(path)
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith('Basic realm="pyengine"')
    assert client.get(path, headers=basic("anybody", "sk-first")).status_code == 200
    assert client.get(path, headers={"Authorization": "Bearer sk-first"}).status_code == 200
    for wrong in (basic("sk-first", "sk-other"), basic("", ""), {"Authorization": "Basic %%%"}):
        assert client.get(path, headers=wrong).status_code == 401
    assert make_client(api_key=("sk-first",), public_metrics=True).get(path).status_code == 200


def test_the_api_takes_no_password():
    client = make_client(api_key=("sk-first",))
    refused = client.get("/v1/models", headers=basic("x", "sk-first"))
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Bearer")


def served_numbers() -> tuple[str, str]:
    """/metrics before and after ten seconds of some life."""
    metrics = Metrics('a "model"\\', 1000)
    metrics.update_engine(Stats(num_blocks=100, num_free_blocks=100))
    before = metrics.render().decode()
    for _ in range(4):
        request = metrics.track(100)
        for _ in range(3):
            request.observe(TokenDelta("r", 0, [1]))
        request.finish("stop")
    metrics.count_rejection("max_num_queued_reqs")
    metrics.update_engine(
        Stats(
            num_blocks=100,
            num_free_blocks=75,
            num_running=3,
            num_waiting=2,
            num_prompt_tokens=400,
            num_cached_tokens=100,
            num_generated_tokens=50,
            num_preemptions=1,
        )
    )
    return before, metrics.render().decode()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict:
    """What dashboard_scripts.mjs found out."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    folder = tmp_path_factory.mktemp("dashboard")
    for name in ("metrics.js", "chart.js"):
        (folder / name).write_text(resources.files(dashboard).joinpath(name).read_text())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "scripts.mjs").write_text(SCRIPTS.read_text())
    served = json.dumps(served_numbers())
    done = subprocess.run([node, "scripts.mjs"], input=served, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_series_that_is_drawn_exists(scripts):
    _, text = served_numbers()
    served = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert set(scripts["names"]) <= served


def test_the_numbers_are_those_of_the_metrics(scripts):
    now, point = scripts["now"], scripts["point"]
    assert now["model"] == 'a "model"\\' and (now["running"], now["waiting"], now["kvUsage"]) == (3, 2, 0.25)
    assert (now["preemptions"], now["rejected"], now["finished"]) == (1, 1, 4)
    assert (point["generated"], point["prompt"]) == (5, 40), "a second, of ten"
    assert (point["kvUsage"], point["hitRate"]) == (25, 25)
    assert 0 < point["itl50"] <= point["itl99"] <= 1 and 0 < point["ttft50"] <= point["ttft99"]


def test_quantiles_lie_inside_their_buckets(scripts):
    assert scripts["quantiles"] == {"half": 1.5, "all": 4, "beyond": 4, "none": None, "since": 3}


def test_lines_and_scales(scripts):
    assert scripts["line"] == "M0.0,142.0h0.1L240.0,75.0M600.0,8.0h0.1", "a gap where seconds are missing"
    assert scripts["ceilings"] == [1, 0.5, 5, 1000, 2000]
    assert scripts["readable"] == ["-", "0", "0.0123", "99.5", "1235", "12.3k", "1.23M"]
    assert scripts["nearest"] == 40
