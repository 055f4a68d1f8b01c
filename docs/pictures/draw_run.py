"""Draw docs/pictures/train.svg: the terminal of a real `graft train` on the embedded model.

    python docs/pictures/draw_run.py

The run is the README's first command. Its output is drawn as it was printed; only the second sample row is
left out. Speed and memory are those of the machine that drew the picture.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LINE = sys.executable, "-c", "from graft.cli import main; main()"
LEARNT = re.compile("⟦.*⟧")


def command() -> str:
    """Return the first `graft train` of the README, which may go on in the next line."""
    readme = (ROOT / "README.md").read_text().replace(" \\\n ", "")
    return next(line for line in readme.splitlines() if line.startswith("graft train"))


def printed_by(line: str) -> list[str]:
    """Run one command line in an empty folder and return what it prints, with the cache folder shortened."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache"}
        done = subprocess.run(
            [*COMMAND_LINE, *shlex.split(line)[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        lines = done.stdout.replace(f"{folder}/cache", "~/.cache").rstrip().splitlines()
        return [line for line in lines if not line.endswith(" ...")]  # a terminal replaces them


def without_second_row(lines: list[str]) -> list[str]:
    """Leave out the sample rows after the first, from their `row` line to the line that starts training."""
    rows = [number for number, line in enumerate(lines) if line.startswith("row ")]
    start = next(number for number, line in enumerate(lines) if line.startswith("train "))
    return lines[: rows[1]] + lines[start:] if len(rows) > 1 else lines


def painted(line: str) -> Text:
    """Return a line with its first word bold where it is a label, and the text that is learnt in green."""
    text = Text(line)
    text.highlight_regex(
        r"^(note|plan|base|adapter|data|tokens|length|row|train|step|eval|saved|wrote|next|metric)\b",
        "bold cyan",
    )
    text.highlight_regex(LEARNT, "green")
    text.highlight_regex(r"loss [\d.]+", "bold")
    return text


def draw(line: str, lines: list[str]) -> str:
    """Return the terminal as SVG, without the web font that rich would fetch."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=108, file=nowhere)
        console.print(Text(f"$ {line}", "bold"))
        for printed in lines:
            console.print(painted(printed))
        svg = console.export_svg(title="graft train", unique_id="run")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    picture = ROOT / "docs/pictures/train.svg"
    picture.write_text(draw(command(), without_second_row(printed_by(command()))) + "\n")
    print(f"wrote {picture.relative_to(ROOT)}")
