"""The studio's pages in Chromium, for tests. What no page may do fails the test that opened it.

    @pytest.fixture(scope="module")
    def browser():
        with chromium() as found:
            yield found

    with visit(browser, address, width=390, scheme="dark") as page:
        page.goto("/studio/runs")

The browser's loop belongs to the thread that began it: give it a module's life, never a session's.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM

HEIGHTS = {1280: 900, 390: 844}  # of a window, by its width
REFUSED = "Failed to load resource"  # what the console says of every answer from 400 on
# Elements that stand outside the window of a narrow page, where nothing around them scrolls.
LATE = """() => {
  const wide = document.documentElement.clientWidth;
  const inside = (part) => {
    for (let up = part.parentElement; up && up !== document.body; up = up.parentElement)
      if (/auto|scroll|hidden|clip/.test(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  return [...document.body.querySelectorAll("*")]
    .filter((part) => part.getBoundingClientRect().right > wide + 1 && !inside(part))
    .map((part) => `${part.tagName}.${part.className}`);
}"""


@dataclass
class Heard:
    """What a page did.  requests: the addresses.  said: errors of its console, and exceptions."""

    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def foreign(self, address: str) -> list[str]:
        """Return what was asked of others than the server."""
        ours = urlsplit(address).netloc
        return [
            one
            for one in self.requests
            if urlsplit(one).scheme not in ("data", "blob") and urlsplit(one).netloc != ours
        ]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of playwright. Skips the test where the package or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def visit(
    browser: Any,
    address: str,
    *,
    width: int = 1280,
    scheme: str = "light",
    expected: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Any]:
    """Yield a page of a window of its own; `page.heard` tells what it did.

    expected: parts of what its console may say.  settings: of playwright's `new_context`.
    Fails afterwards for requests to other hosts, which reach nobody, and for errors that nobody expected.
    """
    size = {"width": width, "height": HEIGHTS.get(width, 900)}
    settings = {
        "base_url": address,
        "viewport": size,
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    } | settings
    context = browser.new_context(**settings)
    context.set_default_timeout(60_000)
    heard = Heard()
    context.on("request", lambda request: heard.requests.append(request.url))
    context.on("console", lambda line: heard.said.append(line.text) if line.type == "error" else None)
    context.on("weberror", lambda error: heard.said.append(str(error.error)))
    ours = urlsplit(address).netloc
    context.route(lambda url: urlsplit(url).netloc != ours, lambda route: route.abort())
    page = context.new_page()
    page.heard = heard
    try:
        yield page
        foreign = heard.foreign(address)
        assert not foreign, f"asked of other hosts: {foreign[:5]}"
        said = [line for line in heard.said if not any(part in line for part in expected)]
        assert not said, f"errors in the browser: {said[:5]}"
    finally:
        context.close()


def until(page: Any, expression: str, argument: Any = None, timeout_s: float = 60) -> None:
    """Wait until an expression of JavaScript is true. Playwright's own wait needs eval: pages forbid it."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"it never came to {expression}"
        page.wait_for_timeout(20)


def snap(page: Any, folder: Path, name: str) -> Path:
    """Write what a page shows into a folder, and return the picture's path."""
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True, animations="disabled")
    return path


def late(page: Any) -> list[str]:
    """Return the elements that stand out of the window to the right; none on a page that fits."""
    return list(page.evaluate(LATE))


def findings(page: Any) -> list[str]:
    """Return what axe finds on a page, one line for each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:160]}" for one in found]
