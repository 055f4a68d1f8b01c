"""The data report: what was read, what will be learnt, and what a row looks like to the model.

It is shown before step 1 of every run, by `graft data show`, and lies in the run folder as data_report.json.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from graft.data.encode import IGNORED, Example, Examples
from graft.data.rows import Reject

BARS = "▁▂▃▄▅▆▇█"
SAMPLE = 600  # characters of a sample row that the terminal shows


@dataclass
class DataReport:
    """Counts are rows unless the name says tokens.  read = train + eval + Σ rejected."""

    files: list[str] = field(default_factory=list)
    read: int = 0
    train: int = 0
    eval: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    examples: int = 0  # of the training rows; a long document gives several
    tokens: int = 0
    tokens_learnt: int = 0
    tokens_unknown: int = 0
    lengths: dict[str, int] = field(default_factory=dict)  # percentiles of the examples' lengths, in tokens
    histogram: list[list[int]] = field(default_factory=list)  # [up to this many tokens, examples]
    max_length: int = 0
    cut: int = 0
    cut_sources: list[str] = field(default_factory=list)  # the first few
    altered_turns: int = 0
    duplicates: int = 0
    overlap: int = 0  # eval or test rows that are training rows too
    template: str | None = None
    labels: list[str] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, color: bool = True) -> list[str]:
        """The report for a terminal. color: rich markup, learnt text green and the rest dim; else learnt text in ⟦⟧."""
        share = 100 * self.tokens_learnt / max(self.tokens, 1)
        learnt = f"{self.tokens_learnt:,} learnt ({share:.0f} %)" if self.tokens_learnt else ""
        learnt = "   ".join(filter(None, [f"{len(self.labels)} classes" if self.labels else "", learnt]))
        rows = f"{self.train:,} train   {self.eval:,} eval   {len(self.rejects):,} rejected"
        spark = "".join(BARS[n * 7 // max(m for _, m in self.histogram)] for _, n in self.histogram)
        out = [
            f"data    {self.read:,} rows read   {rows}",
            f"tokens  {self.tokens:,} in {self.examples:,} examples   {learnt}",
            f"length  median {self.lengths['50']}   90 % {self.lengths['90']}   longest {self.lengths['100']}"
            f"   limit {self.max_length}   {spark}",
        ]
        notes = [
            (
                self.cut,
                f"{self.cut} rows cut to {self.max_length} tokens, first {', '.join(self.cut_sources[:3])}",
            ),
            (self.tokens_unknown, f"{self.tokens_unknown} tokens unknown to the tokenizer"),
            (
                self.altered_turns,
                f"{self.altered_turns} turns stand otherwise than generated: the template rewrites them",
            ),
            (self.duplicates, f"{self.duplicates} training rows repeat another one"),
            (self.overlap, f"{self.overlap} evaluation rows are training rows too: their score will flatter"),
        ]
        out += [f"note    {text}" for count, text in notes if count]
        out += [f"reject  {count} x {reason}" for reason, count in self.rejected.items()]
        out += [f"reject  {reject}" for reject in self.rejects[:3]]
        if color:
            out = [escape(line) for line in out]
        for sample in self.samples:
            out += [
                "",
                f"row     {escape(sample['source']) if color else sample['source']}",
                _painted(sample, color),
            ]
        return out

    def json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "DataReport":
        return cls(**found | {"rejects": [Reject(**reject) for reject in found["rejects"]]})

    def write_rejects(self, path: Path) -> None:
        """One JSON object per rejected row: source, reason, detail, remedy."""
        path.write_text(
            "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in self.rejects),
            "utf-8",
        )


def describe(report: DataReport, examples: Examples, tokenizer: Any) -> DataReport:
    """Fill in what the examples tell: tokens, lengths, samples. Changes and returns `report`."""
    lengths = sorted(examples.lengths())
    written = len(examples.target_ids)
    report.examples, report.tokens = len(lengths), len(examples.ids) + written
    report.tokens_learnt = sum(examples.learnt) + written + sum(tag != IGNORED for tag in examples.tags)
    report.lengths = {str(p): lengths[(len(lengths) - 1) * p // 100] for p in (0, 10, 50, 90, 99, 100)}
    step = max(1, -(-lengths[-1] // 16))
    report.histogram = [[top, 0] for top in range(step, lengths[-1] + step, step)]
    for length in lengths:
        report.histogram[max(length - 1, 0) // step][1] += 1
    shown = examples[:1] if len(examples) == 1 else [examples[0], examples[len(examples) // 2]]
    report.samples = [sample(example, tokenizer, report.labels) for example in shown]
    return report


def sample(example: Example, tokenizer: Any, labels: Sequence[str] | None) -> dict[str, Any]:
    """One row for `DataReport.samples`: its place and its runs of [text, learnt]."""
    if example.tags is not None and labels:
        return {"source": example.source, "pieces": _tagged(example, tokenizer, labels)}
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(example.ids, example.labels, strict=True):
        if not runs or runs[-1][1] != (label != IGNORED):
            runs.append(([], label != IGNORED))
        runs[-1][0].append(token)
    runs += [(example.target_ids, True)] if example.target_ids else []
    pieces = [[tokenizer.decode(ids, skip_special_tokens=False), learnt] for ids, learnt in runs]
    if example.target is not None and labels:
        pieces.append([labels[example.target], True])
    return {"source": example.source, "pieces": pieces}


def _tagged(example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]]:
    """Every word with its tag, `O` left unsaid; what the tokenizer puts around them is not learnt."""
    special, words = set(tokenizer.all_special_ids), list[tuple[list[int], int]]()
    for token, tag in zip(example.ids, example.tags or [], strict=True):
        if not words or tag != IGNORED or token in special:
            words.append(([], tag))
        words[-1][0].append(token)
    shown = [(tokenizer.decode(ids), tag) for ids, tag in words]
    return [[text if tag == IGNORED or labels[tag] == "O" else f"{text}/{labels[tag]}", tag != IGNORED]
            for text, tag in shown]  # fmt: skip


def _painted(sample: dict[str, Any], color: bool) -> str:
    out, room = [], SAMPLE
    for text, learnt in sample["pieces"]:
        shown = text if len(text) <= room else text[:room] + " …"
        room = max(0, room - len(text))
        style = "bold green" if learnt else "dim"
        out.append(f"[{style}]{escape(shown)}[/]" if color else f"⟦{shown}⟧" if learnt else shown)
        if not room:
            break
    return "".join(out)
