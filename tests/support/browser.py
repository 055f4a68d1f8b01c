"""Chromium without a window, for tests that look at pages as a browser shows them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# A page in a frame of some width, which tells what it measures of itself. A window cannot be that narrow.
FRAME = """<!doctype html><html><body><script>
addEventListener("message", event => Object.assign(document.documentElement.dataset, event.data));
</script><iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe></body></html>"""
MEASURE = """<script>addEventListener("load", () => {
  const page = document.documentElement, wide = page.clientWidth;
  const outside = part => part.closest(".scroll, pre, .plot, template") === null;
  const late = [...document.body.querySelectorAll("*")].filter(
    part => outside(part) && part.getBoundingClientRect().right > wide + 1);
  const names = late.slice(0, 5).map(part => part.tagName + "." + part.className);
  parent.postMessage({scroll: page.scrollWidth, client: wide, late: names.join(" ")}, "*");
});</script>"""


@dataclass(frozen=True)
class Looked:
    """A page as the browser has it.  said: what its console says.  html: the document after its scripts."""

    said: list[str]
    html: str

    def told(self, name: str) -> str:
        """Return what was noted at the document under a name."""
        found = re.search(rf'<html[^>]*data-{name}="([^"]*)"', self.html)
        return found[1] if found else ""


def look(page: str, folder: Path) -> Looked:
    """Open a page in a window."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    return _open(folder / "page.html")


def measured(page: str, folder: Path, width: int) -> dict[str, str]:
    """Return how wide a page is where it has this width: `client`, `scroll`, and `late` elements beyond it.

    Nothing counts that scrolls inside itself. The script that measures needs a page without a policy.
    """
    page = POLICY.sub("", page).replace("</body>", f"{MEASURE}</body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    looked = _open(folder / "frame.html")
    return {name: looked.told(name) for name in ("client", "scroll", "late")}


def _open(path: Path) -> Looked:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={path.parent / 'profile'}",
            "--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=True,
    )  # fmt: skip
    return Looked(re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr), done.stdout)
