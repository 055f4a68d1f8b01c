"""Chromium without a window, for tests that look at pages as a browser shows them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
MEASURE = """<script>addEventListener("load", () => {
  const page = document.documentElement, wide = page.clientWidth;
  const outside = part => part.closest(".scroll, pre, .plot, template") === null;
  const late = [...document.body.querySelectorAll("*")].filter(
    part => outside(part) && part.getBoundingClientRect().right > wide + 1);
  page.dataset.scroll = page.scrollWidth;
  page.dataset.client = wide;
  page.dataset.wide = late.slice(0, 5).map(part => part.tagName + "." + part.className).join(" ");
});</script>"""


@dataclass(frozen=True)
class Looked:
    """A page as the browser has it.  said: what its console says.  html: the document after its scripts."""

    said: list[str]
    html: str

    def told(self, name: str) -> str:
        """Return what `MEASURE` noted under a name."""
        found = re.search(rf'<html[^>]*data-{name}="([^"]*)"', self.html)
        return found[1] if found else ""


def look(page: str, folder: Path, width: int, *, measured: bool = False) -> Looked:
    """Open a page in a window of this width.  measured: with a script that measures it, and no policy."""
    path = folder / "page.html"
    if measured:
        page = POLICY.sub("", page).replace("</body>", f"{MEASURE}</body>")
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
            "--virtual-time-budget=3000", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=True,
    )  # fmt: skip
    said = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    return Looked(said, done.stdout)
