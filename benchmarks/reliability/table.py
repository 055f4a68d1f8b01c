"""Write RESULTS.md from results.csv: what was tried, and which promises held.

python benchmarks/reliability/table.py
python benchmarks/reliability/table.py --to /tmp/trial
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import page
from columns import RESULTS
from page import markdown, measured_on
from results import Row

# What a case is, by the part of the harness.
PARTS = {
    "crash": "The process, or the power, ends after an operation on the disk: what is found afterwards? "
    "Every operation, in four states of the disk: all is there; bytes that were not synced are gone; half of "
    "them are; names that were not synced are.",
    "errno": "An operation on the disk fails, once or from there on (ENOSPC, EIO, EACCES, EROFS): is the "
    "error named, is what was saved still there, and does the same command go on?",
    "file size limit": "No file may grow beyond a size (RLIMIT_FSIZE), at every 64th of the largest file.",
    "flips": "One bit of one file is another: is it seen before anything is used?",
    "cuts and swaps": "A file is cut at every 64th, deleted, swapped, or that of another folder.",
    "kill -9": "A run is killed again and again at random moments: does it end with the bytes of an "
    "undisturbed one? A case is a chain of kills.",
    "signals": "SIGTERM or SIGINT in a phase: is it obeyed within ten seconds, are the words those of a "
    "stop, is nothing half-written left, and does the same command end with the same bytes?",
    "races": "Two commands with other settings into one folder: does one win, and is the folder its run?",
    "fuzz": "Hostile input: is the end an error that says what to do, within 5 seconds and 500 MiB?",
}
TOOLS = {"graft": "Graft", "transformers": "Trainer + PEFT"}


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    write(RESULTS.of(options.raw) if options.raw else RESULTS.read(), options.to)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the page of these rows."""
    parts = [head(rows), *(section(part, [row for row in rows if row["part"] == part]) for part in PARTS)]
    page.write(folder / "RESULTS.md", "\n".join(part for part in [*parts, short(rows)] if part))


def head(rows: Sequence[Row]) -> str:
    """Return what was tried, where, and how to read the tables."""
    ours = [row for row in rows if row["tool"] == "graft"]
    levels = ", ".join(sorted({row["level"] for row in rows}))
    return f"""# Faults

    make faults

{measured_on([{**row, "threads": 1} for row in rows])} Level: {levels}.

Graft: {sum(row["tried"] for row in ours):,} cases, of which {sum(row["failed"] for row in ours):,} failed.

- held: the fault was refused, named or survived, as promised. harmless: the damage provably changed nothing
  that was loaded, or the input was valid.
- failed: a promise was broken. Every failure has a number that repeats it; the raw runs tell it in words.
- most seconds, most MiB: of one case; for signals, from the signal to the end of the process.
- Trainer + PEFT: transformers' Trainer with PEFT's LoRA on the same model and rows, where the fault applies.
"""


def section(part: str, rows: Sequence[Row]) -> str:
    """Return the table of one part."""
    if not rows:
        return ""
    extra = [(name, title) for name, title in (
        ("kills", "kills"), ("repeated", "most steps repeated"), ("seconds", "most seconds"),
        ("memory_mib", "most MiB"),
    ) if any(name in row for row in rows)]  # fmt: skip
    table = [["what", "tool", "cases", "held", "harmless", "failed", *(title for _, title in extra)]]
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("tried", "held", "harmless", "failed"))
        table.append([
            row["what"], TOOLS[row["tool"]], *counts,
            *(f"{row[name]:.3g}" if name in row else "" for name, _ in extra),
        ])  # fmt: skip
    return f"## {part[0].upper()}{part[1:]}\n\n{PARTS[part]}\n\n{markdown(table)}"


def short(rows: Sequence[Row]) -> str:
    """Return what falls short, of Graft."""
    broken = [row for row in rows if row["tool"] == "graft" and row["failed"]]
    lines = [
        f"- {row['part']}, {row['what']}: {row['failed']:,} of {row['tried']:,} failed" for row in broken
    ]
    return "## What falls short\n\n" + ("\n".join(lines) or "Nothing of what was tried.") + "\n"


if __name__ == "__main__":
    main()
