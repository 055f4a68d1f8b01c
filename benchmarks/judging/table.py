"""Write RESULTS.md from results.csv: what the judging code makes of the published verdicts, beside the paper.

python benchmarks/judging/table.py
python benchmarks/judging/table.py --raw runs/bench/judging --to /tmp/trial
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import page
from columns import RESULTS
from page import markdown, measured_on
from results import Row as Number

COMMANDS = """\
    python benchmarks/judging/run.py
    python benchmarks/collect.py judging
    python benchmarks/judging/table.py"""
SHORT = "Elo, 500 games"
SETS = {"vicuna": "80 Vicuna prompts", "oasst": "953 OASST prompts"}
WITHIN = 10  # points of Elo that the paper's ratings may be off


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    numbers = RESULTS.of(options.raw) if options.raw else RESULTS.read()
    page.write(options.to / "RESULTS.md", "\n".join([head(numbers), *parts(numbers)]))


def head(numbers: Sequence[Number]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# Judgements: the QLoRA paper's ratings from its published verdicts

{COMMANDS}

{measured_on(numbers)} Data and settings: [README](README.md).

- 95 % intervals are over the prompts, drawn with replacement. The paper's, of about a point, are over orders.
- 30b-guanaco is the model that the paper calls 33B.
"""


def parts(numbers: Sequence[Number]) -> list[str]:
    """Return the sections."""
    return [
        *(tournament(numbers, part) for part in SETS),
        relative(numbers), agreed(numbers), swayed(numbers), covered(numbers),
    ]  # fmt: skip


def pick(numbers: Sequence[Number], part: str, measure: str) -> dict[str, Number]:
    """Return the numbers of a measure by their names."""
    return {str(row["name"]): row for row in numbers if (row["part"], row["measure"]) == (part, measure)}


def interval(row: Number, digits: int) -> str:
    return f"{row['low']:.{digits}f} … {row['high']:.{digits}f}"


def signed(difference: float) -> str:
    """Return a difference in whole points with its sign.

    >>> signed(-0.4), signed(2.6)
    ('0', '+3')
    """
    return f"{round(difference):+d}" if round(difference) else "0"


def best_first(rows: dict[str, Number]) -> list[str]:
    return sorted(rows, key=lambda name: -rows[name]["value"])


def tournament(numbers: Sequence[Number], part: str) -> str:
    """Return the ratings of one set of prompts beside the paper's."""
    elo, short, likely = (pick(numbers, part, name) for name in ("Elo", SHORT, "Bradley-Terry"))
    games = pick(numbers, part, "games")["all"]["value"]
    seconds = pick(numbers, part, "seconds of Elo")["10000 orders"]["value"]
    lines = [
        [
            name, str(row["published"]), f"{row['value']:.0f}", signed(row["value"] - row["published"]),
            interval(row, 0), f"{short[name]['value']:.0f}", f"{likely[name]['value']:.0f}",
            interval(likely[name], 0),
        ]
        for name, row in ((name, elo[name]) for name in best_first(elo))
    ]  # fmt: skip
    header = ["model", "paper", "Elo", "differs by", "95 %", "Elo of 500 games", "Bradley-Terry", "95 %"]
    off = {name: abs(row["value"] - row["published"]) for name, row in elo.items()}
    far = [name for name, points in off.items() if points > WITHIN]
    nearest = max(abs(row["value"] - row["published"]) for row in short.values())
    but = f", all but {', '.join(far)}" if far else ""
    same = best_first(elo) == sorted(elo, key=lambda name: -elo[name]["published"])
    return f"""## Elo, {SETS[part]}, judged by GPT-4

Mean over 10,000 orders of all {games:,} games, K 32, start 1000: {seconds:.0f} s on one thread.

{markdown([header, *lines])}
The ranking is {"the paper's" if same else "NOT the paper's"}. {len(off) - len(far)} of {len(off)} ratings \
are within {WITHIN} points of the paper's{but}. After the first 500 games of each order all are within \
{nearest:.1f} points.
"""


def relative(numbers: Sequence[Number]) -> str:
    """Return the marks relative to ChatGPT's."""
    marks = pick(numbers, "marks", "marks, % of ChatGPT's")
    first, second = (pick(numbers, "marks", name) for name in ("shown first", "shown second"))
    lines = [
        [
            name, f"{row['published']:.1f}", f"{row['value']:.1f}", interval(row, 1),
            f"{first[name]['value']:.1f}", f"{second[name]['value']:.1f}",
        ]
        for name, row in ((name, marks[name]) for name in best_first(marks))
    ]  # fmt: skip
    header = ["model", "paper", "mean of both orders", "95 %", "shown first", "shown second"]
    off = max((abs(round(row["value"], 1) - row["published"]), name) for name, row in marks.items())
    guanaco = max(
        abs(round(r["value"], 1) - r["published"]) for name, r in marks.items() if "guanaco" in name
    )
    return f"""## Marks out of ten, in per cent of ChatGPT's

{markdown([header, *lines])}
The largest difference from the paper is {off[0]:.1f} ({off[1]}), of the four Guanaco models {guanaco:.1f}.
"""


def agreed(numbers: Sequence[Number]) -> str:
    """Return the agreement of humans and GPT-4."""
    lines = []
    for measure in ("Kendall", "Spearman", "Fleiss"):
        for name, row in pick(numbers, "agreement", measure).items():
            ours = f"{row['value']:.2f}" if "value" in row else "votes not at hand"
            lines.append([measure, name, f"{row['published']:.2f}" if "published" in row else "", ours])
    return f"""## Agreement

{markdown([["measure", "between", "paper", "here"], *lines])}"""


def swayed(numbers: Sequence[Number]) -> str:
    """Return the biases of the judge."""
    lines = []
    for part, title in SETS.items():
        for measure in ("points of the answer shown first", "pairs with one verdict in both orders",
                        "points of the longer answer"):  # fmt: skip
            for row in pick(numbers, part, measure).values():
                lines.append([title, measure, f"{100 * row['value']:.1f}", percent(row)])
        unread, games = (pick(numbers, part, name)["all"]["value"] for name in ("no verdict", "games"))
        lines.append([title, "judgements without a verdict", f"{100 * unread / (unread + games):.1f}", ""])
    return f"""## What sways GPT-4

{markdown([["prompts", "measure", "%", "95 %"], *lines])}"""


def percent(row: dict[str, Any]) -> str:
    return f"{100 * row['low']:.1f} … {100 * row['high']:.1f}"


def covered(numbers: Sequence[Number]) -> str:
    """Return how often the intervals contain the known strengths."""
    lines = []
    for measure in ("Bradley-Terry, % inside", "Elo, % inside"):
        rows = pick(numbers, "coverage", measure)
        single = [row["value"] for name, row in rows.items() if name != "all models"]
        best = f"{rows['h']['value']:.1f}"
        cells = [f"{rows['all models']['value']:.1f}", f"{min(single):.1f} … {max(single):.1f}", best]
        lines.append([measure.partition(",")[0], *cells])
    header = ["rating", "inside, %", "of single models, %", "of the strongest, %"]
    return f"""## How often 95 % intervals contain the truth

200 tournaments of 8 models with known strengths, 80 prompts, both orders.

{markdown([header, *lines])}"""


if __name__ == "__main__":
    main()
