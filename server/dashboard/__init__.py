"""/dashboard: a page that draws what /metrics counts, for whoever would rather look than read.

The page and its scripts are files of this folder, without a library and without anything from elsewhere; they hold no
data and ask ``/metrics`` for it once a second. So it is for the same eyes: with ``--api-key`` a browser asks for the
key (any user name, the key as the password), unless ``--public-metrics`` opens both.
"""

from __future__ import annotations

from importlib import resources

from flask import Blueprint, Response

FILES = {  # endpoint: the file, and what it is
    "page": ("page.html", "text/html"),
    "style": ("style.css", "text/css"),
    "main": ("main.js", "text/javascript"),
    "metrics": ("metrics.js", "text/javascript"),
    "chart": ("chart.js", "text/javascript"),
}
ENDPOINTS = frozenset(f"dashboard.{name}" for name in FILES)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_blueprint() -> Blueprint:
    routes = Blueprint("dashboard", __name__)
    for endpoint, (name, kind) in FILES.items():
        path = "/dashboard" if endpoint == "page" else f"/dashboard/{name}"
        routes.add_url_rule(path, endpoint, _file, defaults={"name": name, "kind": kind})
    return routes


def _file(name: str, kind: str) -> Response:
    content = resources.files(__name__).joinpath(name).read_bytes()
    return Response(content, content_type=f"{kind}; charset=utf-8", headers=_HEADERS)
