"""The HTML of the studio: one shell for all pages, and the files of `web/`."""

import hashlib
import html
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from graft.serve.failures import ApiError
from graft.serve.security import role

ROOT = "/studio"
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
# Nothing comes from elsewhere, nothing inline is run, and no other page may frame this one.
SAFE = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Page:
    """A page.  path: under the root, {name} for a part of it.  script: its module in `web/`, without .js.

    title: of the window and the link.  models: whether it needs a model to be served.
    linked: whether the head of every page leads to it.
    """

    path: str
    script: str
    title: str
    models: bool = False
    linked: bool = True


PAGES = (
    Page("/runs", "runs", "Runs"),
    Page("/runs/{name}", "run", "Run", linked=False),
    Page("/new", "new", "New run"),
    Page("/rows", "rows", "Rows"),
    Page("/chat", "chat", "Chat", models=True),
    Page("/arena", "arena", "Arena", models=True),
    Page("/leaderboard", "leaderboard", "Leaderboard"),
    Page("/preferences", "preferences", "Preferences", linked=False),
)

HEAD = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title · Graft studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="theme-color" content="#ffffff" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#171c23" media="(prefers-color-scheme: dark)">
<link rel="icon" href="$root/web/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="$root/web/studio.css">$more
</head>
<body>
<a class="skip" href="#page">Skip to the page</a>
<header><a class="brand" href="$root/runs">$icon<span>Graft <small>studio</small></span></a>
<nav aria-label="Pages">$links</nav></header>
<main id="page" tabindex="-1"><h1>$title</h1>
$body</main>
<div id="said" role="status" aria-live="polite"></div>
</body>
</html>
""")
SCRIPTED = Template("""
<meta name="graft-token" content="$token">
<meta name="graft-models" content="$models">
<link rel="modulepreload" href="$root/web/studio.js">
<script type="module" src="$root/web/$script.js"></script>""")
WITHOUT_SCRIPTS = """<noscript>
<p class="notes">These pages are drawn by JavaScript: let it run for this address.</p></noscript>"""

MISSING = f"""<div class="empty"><p>Nothing is at this address. The pages are named at the top.</p>
<p><a class="button" href="{ROOT}/runs">To the runs</a></p></div>"""
UNSERVED = f"""<div class="empty"><p>This page needs a model, and the studio was started without one. Stop it,
and start it with the model that your runs have trained:</p><pre>graft studio MODEL --runs FOLDER</pre>
<p><a class="button" href="{ROOT}/runs">To the runs</a></p></div>"""


def add_pages(app: FastAPI, *, token: str | None, models: bool) -> None:
    """Add the pages and the files that they need.

    token: what pages send with requests that change something; None where callers have keys of their own.
    models: whether a model is served.
    """
    web = _web()
    router = APIRouter(include_in_schema=False)
    for page in PAGES:
        if models or not page.models:
            more = SCRIPTED.substitute(
                token=html.escape(token or ""),
                models="yes" if models else "no",
                root=ROOT,
                script=page.script,
            )
            body = _document(page.title, WITHOUT_SCRIPTS, _links(page, models), more)
            router.add_api_route(ROOT + page.path, _shown(body), methods=["GET"])

    @router.get("/")
    @router.get(ROOT)
    @role("open")
    async def home() -> RedirectResponse:
        return RedirectResponse(f"{ROOT}/runs")

    @router.get(ROOT + "/web/{name}")
    @role("open")
    async def file(request: Request, name: str) -> Response:
        if name not in web:
            raise ApiError(404, f"no file {name[:80]!r}")
        content, tag = web[name]
        headers = SAFE | {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        kind = f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        return Response(content, headers=headers, media_type=kind)

    app.include_router(router)


def add_missing(app: FastAPI, *, models: bool) -> None:
    """Answer every other address of the studio with a page that says what to do. It must be added last."""
    unserved = {} if models else {page.path: page.title for page in PAGES if page.models}
    links = _links(None, models)
    router = APIRouter(include_in_schema=False)

    @router.get(ROOT + "/{path:path}")
    @role("open")
    async def missing(path: str) -> HTMLResponse:
        if path.startswith("api/"):
            raise ApiError(404, f"no address {ROOT}/{path[:80]}")
        title = unserved.get(f"/{path}", "No such page")
        body = UNSERVED if f"/{path}" in unserved else MISSING
        headers = SAFE | {"Cache-Control": "no-store"}
        return HTMLResponse(_document(title, body, links), 404, headers)

    app.include_router(router)


def _document(title: str, body: str, links: str, more: str = "") -> str:
    """Return a page.  body, links and more (of its head) are HTML."""
    icon = f'<img src="{ROOT}/web/icon.svg" alt="" width="22" height="22">'
    return HEAD.substitute(title=html.escape(title), body=body, links=links, more=more, root=ROOT, icon=icon)


def _web() -> dict[str, tuple[bytes, str]]:
    """Return the files of the pages by name, each with its tag: a name of a request never becomes a path."""
    ours = files("graft.serve.studio").joinpath("web")
    charts = files("graft.runs.report").joinpath("web")
    found = [file for file in ours.iterdir() if file.is_file()]
    found += [file for file in charts.iterdir() if file.name.startswith("uPlot")]
    content = {file.name: file.read_bytes() for file in found if file.name.rpartition(".")[2] in TYPES}
    return {name: (body, f'"{hashlib.sha256(body).hexdigest()[:16]}"') for name, body in content.items()}


def _links(shown: Page | None, models: bool) -> str:
    links = []
    for page in PAGES:
        if page.linked and (models or not page.models):
            here = ' aria-current="page"' if page is shown else ""
            links.append(f'<a href="{ROOT}{page.path}"{here}>{html.escape(page.title)}</a>')
    return " ".join(links)


def _shown(body: str):  # type: ignore[no-untyped-def]
    @role("open")
    async def show() -> HTMLResponse:
        return HTMLResponse(body, headers=SAFE | {"Cache-Control": "no-store"})

    return show
