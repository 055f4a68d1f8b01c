"""Write RESULTS.md and parts.svg from results.csv: ratios to the peers beside their goals.

python benchmarks/speed/table.py
python benchmarks/speed/table.py --raw runs/bench/speed/trial --to /tmp/trial
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
import picture
from columns import RESULTS
from page import markdown, measured_on

Line = dict[str, Any]
COMMANDS = """\
    python benchmarks/speed/run.py
    python benchmarks/collect.py speed
    python benchmarks/speed/table.py"""
ALLOWED = (
    "The first loss may differ by 0.5 % from the reference: transformers in fp32 on the same weights, which "
    "bitsandbytes quantised."
)
OF_CHANGE = "is how far the change of the parameters is from that by torch in fp32."
OF_TOKENS = "greedy tokens come before the first that differs from transformers' in fp32 on the same weights."
# of a kind of row: what a unit of its work is called, and its rate
UNITS = {
    "train": ("training step", "tokens/s"), "load": ("load", "loads/s"),
    "optimizer": ("update", "parameters/s"), "decode": ("text", "tokens/s"),
    "demo": ("step or text", "tokens/s"),
}  # fmt: skip


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    lines = RESULTS.of(options.raw) if options.raw else RESULTS.read()
    order = list(grid.ROWS)
    lines.sort(key=lambda line: (line["cpu"], order.index(line["row"]), line["number"]))
    text = [head(lines)]
    for _, group in groupby(lines, key=lambda line: line["cpu"]):
        mine = list(group)
        rows = {name: list(sides) for name, sides in groupby(mine, key=lambda line: line["row"])}
        text += [place(mine), goals(rows), sides(rows), memory(rows), same(rows)]
    page.write(options.to / "RESULTS.md", "\n".join(part for part in text if part))
    (options.to / "parts.svg").write_text(picture.svg(lines), encoding="utf-8")


def head(lines: Sequence[Line]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# Speed and memory beside the peers

{COMMANDS}

{measured_on(lines)} A section for each kind of processor.

- ratio: the rate of Graft divided by the side's, medians of one run in which the sides took turns; in
  brackets the lowest and the highest of its rounds. Above 1 Graft is faster.
- A goal is met if the ratio is at least it. Numbers that were measured while other processes used more than
  half a core are left out.
- share of the machine: operations a second, counted without recomputation, divided by the best product rate
  of torch's dtypes that the same run measured; for loading and decoding, bytes that must be read, divided by
  the reading rate.
- shipped is PEFT + bitsandbytes as their documents show it. tuned is the same in the number format that was
  fastest here, without fp32 copies, with an allocator that keeps its memory.

![Where the time of a training step goes](parts.svg)
"""


def place(lines: Sequence[Line]) -> str:
    """Return the heading of what one kind of processor measured."""
    first = lines[0]
    return f"## {first['cpu']}\n\nVector instructions: {first['isa']}.\n"


def goals(rows: dict[str, list[Line]]) -> str:
    """Return every goal with what was reached."""
    table = [["work", "against", "goal", "reached", "met"]]
    for name, lines in rows.items():
        table += list(_goals(grid.ROWS[name], lines))
    return "### Goals\n\n" + markdown(table)


def _goals(row: grid.Row, lines: Sequence[Line]) -> Iterator[list[str]]:
    """Yield a line for each goal of a row: ratios, the share of the machine, the bound on memory."""
    by_side = {line["side"]: line for line in lines}
    title = row.title
    for side, goal in row.goals.items():
        if side in by_side:
            line = by_side[side]
            met = verdict(line.get("ratio"), goal, line)
            yield [title, _named(line), f"{goal:.3g}x", ratio(line), met]
            title = ""
    first = lines[0]
    if row.share is not None:
        reached = f"{first['share']:.0%}" if "share" in first else ""
        met = verdict(first.get("share"), row.share, first)
        yield [title, "the machine", f"{row.share:.0%}", reached, met]
        title = ""
    if row.rate is not None:
        reached = f"{first['per_s']:,.0f}" if "per_s" in first else ""
        met = verdict(first.get("per_s"), row.rate, first)
        yield [title, "", f"{row.rate:,.0f} {UNITS[row.kind][1]}", reached, met]
    if bounded(row) and "bound_mib" in first:
        bound, peak = first["bound_mib"], first["peak_mib"]
        fits = "yes" if peak <= bound else "NO"
        yield [title, "the bound on memory", f"{bound:,.0f} MiB", f"{peak:,.0f} MiB", fits]


def bounded(row: grid.Row) -> bool:
    """Return whether the row's memory has a bound that counts the interpreter and its libraries as little."""
    return row.kind == "load" or row.shape == "7b"


def verdict(reached: float | None, goal: float, line: Line) -> str:
    """Return whether a goal is met, in a word; work that is not the same counts for nothing.

    >>> verdict(2.0, 1.5, {}), verdict(1.0, 1.5, {}), verdict(None, 1.5, {}), verdict(2.0, 1.5, {"same": 0})
    ('yes', 'NO', 'not measured', 'not the same work')
    """
    if reached is None:
        return "not measured"
    if line.get("same") == 0:
        return "not the same work"
    return "yes" if reached >= goal else "NO"


def sides(rows: dict[str, list[Line]]) -> str:
    """Return the speed of every side."""
    table = [["work", "side", "seconds (lowest to highest)", "rate", "ratio", "share of the machine"]]
    for name, lines in rows.items():
        row = grid.ROWS[name]
        for number, line in enumerate(lines):
            seconds = rate = "refused" if line["refused"] else ""
            if "seconds" in line:
                seconds = f"{line['seconds']:.3g} ({line['seconds_low']:.3g} to {line['seconds_high']:.3g})"
                rate = f"{line['per_s']:,.3g}" if line["per_s"] < 1e3 else f"{line['per_s']:,.0f}"
                rate = f"{rate} {UNITS[row.kind][1]}"
            share = f"{line['share']:.0%}" if "share" in line else ""
            title = "" if number else f"{row.title} ({UNITS[row.kind][0]})"
            table.append([title, _named(line), seconds, rate, ratio(line), share])
    limits = [line for lines in rows.values() for line in lines if "machine_gflops" in line]
    found = ""
    if limits:
        best = max(line["machine_gflops"] for line in limits)
        read = max(line["machine_gb_per_s"] for line in limits)
        found = f"\nThe machine's best: products {best:,.0f} GFLOP/s, reading {read:.1f} GB/s.\n"
    return "### Speed\n\n" + markdown(table) + found


def memory(rows: dict[str, list[Line]]) -> str:
    """Return the resident memory of every side, with the interpreter and all libraries."""
    table = [["work", "side", "peak of the work, MiB", "after loading", "peak of loading"]]
    for name, lines in rows.items():
        for number, line in enumerate(lines):
            values = [line.get(key) for key in ("peak_mib", "loaded_mib", "load_peak_mib")]
            cells = ["" if value is None else f"{value:,.0f}" for value in values]
            if grid.ROWS[name].kind == "load":  # the load is the work
                cells[1:] = ["", ""]
            table.append(["" if number else grid.ROWS[name].title, _named(line), *cells])
    return "### Memory\n\nOf the whole process, mapped files included.\n\n" + markdown(table)


def same(rows: dict[str, list[Line]]) -> str:
    """Return what shows that all sides did the same work."""
    losses = [["work", "side", "trained", "first loss", "fp32 reference", "difference", "last loss", "steps"]]
    others: list[str] = []
    for name, lines in rows.items():
        title = grid.ROWS[name].title
        for number, line in enumerate(lines):
            if "loss_first" in line:
                losses.append(["" if number else title, _named(line), *_losses(line)])
            if line.get("distance"):
                others.append(f"- {title}, {_named(line)}: {line['distance']:.2%} {OF_CHANGE}")
            if "same_tokens" in line:
                new = grid.ROWS[name].work["new"]
                others.append(f"- {title}, {_named(line)}: {line['same_tokens']} of {new} {OF_TOKENS}")
    return f"### The same work\n\n{ALLOWED}\n\n{markdown(losses)}\n" + "\n".join([*others, ""])


def _losses(line: Line) -> list[str]:
    return [
        f"{line['trained']:,}", f"{line['loss_first']:.4f}", f"{line['loss_reference']:.4f}",
        f"{line['loss_error']:.2%}", f"{line['loss_last']:.3f}", str(line["steps"]),
    ]  # fmt: skip


def ratio(line: Line) -> str:
    """Return a ratio with its spread; nothing for the side that it is about.

    >>> ratio({"ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.25}), ratio({})
    ('2.00 (1.90 to 2.25)', '')
    """
    if "ratio" not in line:
        return ""
    return f"{line['ratio']:.2f} ({line['ratio_low']:.2f} to {line['ratio_high']:.2f})"


def _named(line: Line) -> str:
    """Return a side with the number format it chose."""
    return f"{line['side']} ({line['variant']})" if "variant" in line else line["side"]


if __name__ == "__main__":
    main()
