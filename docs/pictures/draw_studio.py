"""Draw docs/pictures/studio/*.png: every page of the studio in a browser, wide and narrow, light and dark.

    python docs/pictures/draw_studio.py [PAGE ...]      needs Chromium, playwright, and Pillow for small files

Two short runs of the embedded model are trained for them, and answers of theirs are voted on: the longer one
wins. PAGE is the name of a page's module, such as chat.
The time of each page's first paint is printed beside its picture.
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright

import graft
from graft.models.load import load
from graft.serve.studio.pages import PAGES, ROOT

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
from studio_server import studio_server  # noqa: E402  it stands beside the tests, which start one as well

TARGET = REPOSITORY / "docs" / "pictures" / "studio"
HEIGHTS = {1280: 900, 390: 844}
TALLEST = 1400  # pixels of a page that a picture shows
MOST = 100_000  # bytes of a picture
RUNS = {
    "shop": {"method": {"name": "lora", "r": 8}},
    "shop-small": {"method": "ia3"},
}
BATTLES = 40
VOTE = """async (count) => {
  const token = document.querySelector("meta[name=graft-token]").content;
  const post = (path, body) => fetch(`/studio/api${path}`, { method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "X-Graft-Token": token } });
  for (let number = 0; number < count; number += 1) {
    const content = `Describe a ${["kettle", "lamp", "chair", "spoon"][number % 4]} of style ${number}.`;
    const asked = await post("/battles", { messages: [{ role: "user", content }], max_tokens: 24 });
    const lines = (await asked.text()).trim().split("\\n").map((line) => JSON.parse(line));
    const written = { a: "", b: "" };
    for (const line of lines) if (line.text) written[line.side] += line.text;
    const more = written.a.length - written.b.length, verdict = more === 0 ? "tie" : more > 0 ? "a" : "b";
    await post("/votes", { battle: lines[0].battle, verdict, key: `picture-${number}`, tags: ["length"] });
  }
}"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def train(home: Path) -> None:
    """Train the runs that pages show."""
    for name, changes in RUNS.items():
        recipe: dict[str, Any] = {
            "model": "seedling",
            "data": {"train": "seedling:descriptions", "test": "seedling:descriptions-held-out"},
            "train": {"max_steps": 60, "eval_every": 10, "save_every": 30, "lr": 3e-3},
            "evaluate": {"metrics": ["perplexity"], "limit": 16},
            "output": str(home / name),
        }
        graft.run(recipe | changes)


def ask(tab: Tab) -> None:
    """Let the chat answer, and point at a token."""
    tab.get_by_text("Settings of all columns").click()
    tab.locator("#longest").fill("60")
    tab.get_by_text("Settings of all columns").click()
    tab.get_by_label("Your message").fill("Describe a kettle that is quiet, for the kitchen.")
    tab.get_by_role("button", name="Send").click()
    tab.get_by_text("Parts from").first.wait_for()
    tab.locator(".column").first.locator(".token").nth(3).focus()


# What is done on a page before it is drawn, by the name of its module.
BEFORE: dict[str, Callable[[Tab], None]] = {"chat": ask}


def drawn(tab: Tab, address: str, path: str, script: str) -> tuple[Image.Image, float]:
    """Return what a window shows of a page, and milliseconds until its first paint."""
    tab.goto(f"{address}{ROOT}{path.replace('{name}', next(iter(RUNS)))}")
    tab.wait_for_load_state("networkidle")
    painted = tab.evaluate(PAINT)
    if script in BEFORE:
        BEFORE[script](tab)
    shown = Image.open(io.BytesIO(tab.screenshot(full_page=True, animations="disabled")))
    return shown.crop((0, 0, shown.width, min(shown.height, TALLEST))), painted


def save(picture: Image.Image, path: Path) -> int:
    """Write a picture with as many colours as fit into its size, and return its bytes."""
    for colours in (128, 64, 32, 16):
        small = picture.convert("RGB").quantize(colours)
        small.save(path, optimize=True)
        if path.stat().st_size <= MOST:
            break
    return path.stat().st_size


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    chosen = [page for page in PAGES if page.script in (sys.argv[1:] or [page.script])]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        train(Path(folder))
        names = ("chromium", "chromium-browser", "google-chrome")
        binary = next(filter(None, map(shutil.which, names)), None)
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        with studio_server(Path(folder), load("seedling", dtype="fp32")) as address:
            voter = browser.new_page()
            voter.goto(address)
            voter.evaluate(VOTE, BATTLES)
            for page in chosen:
                for width, height in HEIGHTS.items():
                    for scheme in ("light", "dark"):
                        context = browser.new_context(
                            viewport={"width": width, "height": height}, color_scheme=scheme
                        )
                        picture, painted = drawn(context.new_page(), address, page.path, page.script)
                        path = TARGET / f"{page.script}-{width}-{scheme}.png"
                        size = save(picture, path)
                        print(f"wrote {path.name:30} {size:>7,} bytes   first paint {painted:.0f} ms")
                        context.close()
