"""Draw docs/pictures/screen-NAME-WIDTH.svg: what commands show on a terminal of 80 and of 120 columns.

    pip install pyte && python docs/pictures/draw_screens.py [--only train methods]

Each command runs in a pseudo-terminal; pyte, a terminal in Python, keeps what is on its screen in the end.
Nothing is left out or written by hand. Speed and memory are those of the machine that drew the pictures.
"""

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE = Path(__file__).parent
GRAFT = sys.executable, "-c", "from graft.cli import main; main()"
WIDTHS = 80, 120
LINES = 400  # of the screen: more than a command prints
ROWS = "--model seedling --data seedling:descriptions --method qlora"
SHORT = "--train.max_steps 20 --data.limit 400 --evaluate.limit 40"
# name: (commands that come first, the command that is drawn); {width} keeps their folders apart
SCREENS = {
    "plan": ([], f"graft plan {ROWS}"),
    "train": ([], f"graft train {ROWS} {SHORT} --output runs/first-{{width}}"),
    "methods": ([], "graft methods"),
    "compare": (
        [f"graft train {ROWS} {SHORT} --train.lr 2e-3 --output runs/second-{{width}}"],
        "graft compare runs/first-{width} runs/second-{width} --limit 2 --max-new-tokens 40",
    ),
    "error": ([], "graft train --modle seedling --data seedling:descriptions"),
    "demo": ([], "graft demo --folder runs/demo-{width}"),
}


def shown(line: str, folder: str, width: int) -> pyte.Screen:
    """Run one command line in a folder, in a terminal of this width; return what is on it in the end."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, width, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "XDG_CACHE_HOME": f"{folder}/cache"}
    words = [*GRAFT, *shlex.split(line)[1:]]
    child = subprocess.Popen(words, cwd=folder, env=environment, stdin=there, stdout=there, stderr=there)
    os.close(there)
    screen = pyte.Screen(width, LINES)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            piece = os.read(here, 1 << 16)
        except OSError:  # the child has closed the terminal
            break
        if not piece:
            break
        stream.feed(piece)
    child.wait()
    os.close(here)
    return screen


def as_text(screen: pyte.Screen) -> Text:
    """Return the lines of a screen with their colours, without the empty ones at its end."""
    lines = []
    for number in range(LINES):
        cells = [screen.buffer[number][column] for column in range(screen.columns)]
        line = Text("".join(cell.data for cell in cells))
        for column, cell in enumerate(cells):
            line.stylize(_style(cell), column, column + 1)
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def _style(cell: Any) -> Style:
    colour = {"default": None, "brown": "yellow"}.get(cell.fg, cell.fg)
    if colour and re.fullmatch("[0-9a-f]{6}", colour):
        colour = f"#{colour}"
    return Style(color=colour, bold=cell.bold or None)


def draw(line: str, text: Text, width: int, name: str) -> str:
    """Return the terminal as SVG, without the web font that rich would fetch."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="256")
        console.print(Text(f"$ {line}", "bold"))
        console.print(text)
        svg = console.export_svg(title=f"graft {name}", unique_id=f"{name}{width}")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    """Draw the chosen screens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCREENS, default=list(SCREENS))
    only = parser.parse_args().only
    if "compare" in only and "train" not in only:
        only = ["train", *only]  # it compares that run
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            for name in SCREENS:
                if name not in only:
                    continue
                before, line = SCREENS[name]
                for command in before:
                    shown(command.format(width=width), folder, width)
                screen = shown(line.format(width=width), folder, width)
                said = line.format(width=width).replace(f"-{width}", "")
                path = HERE / f"screen-{name}-{width}.svg"
                path.write_text(draw(said, as_text(screen), width, name) + "\n")
                print(f"wrote {path.name} ({path.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()
