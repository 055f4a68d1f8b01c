"""Draw docs/pictures/report-*.png: the page of a real run in a browser, wide and narrow, light and dark.

    python docs/pictures/draw_report.py [RUN]      needs Chromium, and Pillow, which makes the files small

RUN is the folder of a run; by default the embedded model learns to describe made-up products. The name of the
processor is left out.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import graft
from graft.runs.report.page import report

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "chromium"
)
WIDTHS = {1280: 1500, 400: 1500}  # pixels of a window, and how many of the page's height a picture shows
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them
RECIPE = {
    "model": "seedling",
    "method": "qlora",
    "data": {"train": "seedling:descriptions", "test": "seedling:descriptions-held-out"},
    "train": {"max_steps": 100, "eval_every": 20, "lr": 3e-3},
    "evaluate": {"metrics": ["perplexity", "bleu"], "limit": 24},
}


def trained(folder: Path) -> Path:
    """Train, or copy a run, leave out the processor's name, and return the folder of the run."""
    run = folder / "shop"
    if sys.argv[1:]:
        shutil.copytree(sys.argv[1], run)
    else:
        graft.run(RECIPE | {"output": str(run)})
    timing = run / "timing.jsonl"
    lines = [json.loads(line) for line in timing.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "start" in line:
            line["start"]["machine"]["processor"] = ""
    timing.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def shot(page: Path, width: int, height: int, scheme: str) -> Image.Image:
    """Return what a browser shows of a page."""
    target = page.with_suffix(".png")
    subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=3000",
            f"--screenshot={target}", page.as_uri(),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return Image.open(io.BytesIO(target.read_bytes()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(report(trained(Path(folder))), encoding="utf-8")
        for scheme in SCHEMES:
            for width, height in WIDTHS.items():
                picture = ROOT / f"docs/pictures/report-{scheme}-{width}.png"
                colours = shot(page, width, height, scheme).convert("RGB").quantize(64)
                colours.save(picture, optimize=True)
                print(f"wrote {picture.relative_to(ROOT)} ({picture.stat().st_size:,} bytes)")
