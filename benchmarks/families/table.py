"""Write RESULTS.md from results.csv: what works with what, family by family.

python benchmarks/families/table.py
python benchmarks/families/table.py --to /tmp/trial
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import page
from columns import RESULTS
from page import markdown, measured_on
from results import Row

TITLES = {
    "load": "load", "loss": "loss", "packed": "packing", "lora": "LoRA", "bottleneck": "bottleneck",
    "prefix": "prefix", "prompt": "prompt", "experts": "experts", "mixed": "mixed rows", "nf4": "NF4",
}  # fmt: skip
TASKS = {
    "causal": "Decoders",
    "masked": "Encoders that name hidden tokens",
    "seq2seq": "Encoder-decoders",
    "encoder": "Encoders without a head",
}


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    write(RESULTS.of(options.raw) if options.raw else RESULTS.read(), options.to)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the page of these rows."""
    ran = [row for row in rows if "load" in row]
    notes = Notes()
    sections = [section(task, [row for row in ran if row["task"] == task], notes) for task in TASKS]
    parts = [head(ran), *sections, notes.text(), absent([row for row in rows if "load" not in row])]
    page.write(folder / "RESULTS.md", "\n".join(part for part in parts if part))


def head(ran: Sequence[Row]) -> str:
    """Return what was asked of whom, and how to read the cells."""
    verdicts = Counter(verdict(row[column]) for row in ran for column in TITLES if column in row)
    counts = ", ".join(f"{verdicts[word]:,} {word}" for word in ("ok", "refused", "WRONG", "CRASH"))
    return f"""# What works with what

    make families

{measured_on([{**row, "threads": 1} for row in ran])}

{len(ran)} families of the installed transformers, each as a tiny random model. Cells: {counts}.

- load: the logits are transformers' own. loss: it is the model's own, or torch's cross-entropy of its logits
  where the class computes another.
- packing: `ok`, documents that share a row are answered as each alone; `padded`, rows are not shared, and the
  note says why.
- LoRA (on all linear layers), bottleneck (Houlsby's), prefix, prompt: the method changes the answer, every
  trained tensor gets a gradient, one training step moves it, rows with and without it in one batch are as
  alone, it loads into another base, merged it gives the same logits, and texts written with a cache are those
  of whole forwards.
- experts: the same of LoRA on the experts of a mixture, which are parameters and no linear layers.
- mixed rows: a prompt, the bare base and LoRA in one batch, out of order: logits, and texts of a padded
  batch, are those of rows alone.
- NF4: how many of the matrices, embeddings included, lie in four bits; logits are those of transformers with
  the values that the codes stand for, and LoRA acts.
- `refused`: Graft says so before it trains anything. A number leads to the reason below.
"""


def section(task: str, rows: Sequence[Row], notes: "Notes") -> str:
    """Return the table of one kind of model."""
    if not rows:
        return ""
    columns = [column for column in TITLES if any(row.get(column, "-") != "-" for row in rows)]
    lines = [["family", *(TITLES[column] for column in columns)]]
    lines += [
        [row["family"].removesuffix("-plain"), *(notes.short(row.get(column, "-")) for column in columns)]
        for row in rows
    ]
    return f"## {TASKS[task]}\n\n{markdown(lines)}"


def verdict(cell: str) -> str:
    """Return the first word of a cell."""
    return re.split(r"[:\s;]", cell, maxsplit=1)[0]


class Notes:
    """The reasons that cells refer to by number, in the order in which they come up."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def short(self, cell: str) -> str:
        """Return a cell as the table shows it.

        >>> Notes().short("refused: it has no attention")
        'refused [1](#notes)'
        """
        first, *told = cell.split("; notice: ")
        word, _, rest = first.partition(": ")
        if first.startswith("ok: padded, "):
            word, told = "padded", [rest.removeprefix("padded, "), *told]
        elif share := re.search(r"(\d+ %) of all", rest):
            word = share[1]
        elif first.startswith(("WRONG", "CRASH")):
            word, told = verdict(first), [first, *told]
        elif rest and "trained" not in rest:
            told = [rest, *told]
        return " ".join([word, *(f"[{self._number(one)}](#notes)" for one in told)])

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers) + 1)

    def text(self) -> str:
        """Return all reasons as a list."""
        if not self._numbers:
            return ""
        escape = {ord(c): f"\\{c}" for c in "*_<|"}
        lines = [f"{number}. {text.translate(escape)}" for text, number in self._numbers.items()]
        return "## Notes\n\n" + "\n".join(lines) + "\n"


def absent(rows: Sequence[Row]) -> str:
    """Return the families that were not tried, by their reasons."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(str(row["transformers"]), []).append(row["family"])
    lines = [f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]
    return "## Not tried\n\n" + "\n".join(lines) + "\n" if lines else ""


if __name__ == "__main__":
    main()
