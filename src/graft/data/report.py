"""The data report: what was read, what will be learnt, and what a row looks like to the model.

It is shown before step 1 of every run, by `graft data show`, and lies in the run folder as data_report.json.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from graft.data.encode import IGNORED, Example, Examples
from graft.data.rows import Reject


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

    def notes(self) -> list[str]:
        """Return what deserves a look before training, a sentence each."""
        first = ", ".join(self.cut_sources[:3])
        candidates = [
            (self.cut, f"{self.cut} rows cut to {self.max_length} tokens, first {first}"),
            (self.tokens_unknown, f"{self.tokens_unknown} tokens unknown to the tokenizer"),
            (
                self.altered_turns,
                f"{self.altered_turns} turns differ from what was generated: the template rewrites them",
            ),
            (self.duplicates, f"{self.duplicates} training rows repeat another one"),
            (self.overlap, f"{self.overlap} evaluation rows are training rows too: their score will flatter"),
        ]
        return [text for count, text in candidates if count]

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


class Shown(Protocol):
    """What a report needs of a stage (`stages.stage`)."""

    aligned: ClassVar[tuple[str, ...]]

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None: ...


def describe(report: DataReport, examples: Examples, tokenizer: Any, stage: Shown) -> DataReport:
    """Fill in what the examples tell: tokens, lengths, samples. Changes and returns `report`."""
    lengths = sorted(examples.lengths())
    parts = {name: column.values for name, column in examples.parts.items()}
    more = sum(len(values) for name, values in parts.items() if name not in stage.aligned)
    report.examples = len(lengths)
    report.tokens = len(examples.ids.values) + more
    report.tokens_learnt = sum(examples.learnt) + sum(v != IGNORED for p in parts.values() for v in p)
    report.lengths = {str(p): lengths[(len(lengths) - 1) * p // 100] for p in (0, 10, 50, 90, 99, 100)}
    step = max(1, -(-lengths[-1] // 16))
    report.histogram = [[top, 0] for top in range(step, lengths[-1] + step, step)]
    for length in lengths:
        report.histogram[max(length - 1, 0) // step][1] += 1
    shown = examples[:1] if len(examples) == 1 else [examples[0], examples[len(examples) // 2]]
    report.samples = [sample(example, tokenizer, stage, report.labels or []) for example in shown]
    return report


def sample(example: Example, tokenizer: Any, stage: Shown, labels: Sequence[str]) -> dict[str, Any]:
    """Return one row for `DataReport.samples`: its place, and its runs of [text, learnt]."""
    pieces = stage.pieces(example, tokenizer, labels)
    if pieces is None:
        runs: list[tuple[list[int], bool]] = []
        for token, label in zip(example.ids, example.labels, strict=True):
            if not runs or runs[-1][1] != (label != IGNORED):
                runs.append(([], label != IGNORED))
            runs[-1][0].append(token)
        pieces = [[tokenizer.decode(ids, skip_special_tokens=False), learnt] for ids, learnt in runs]
    return {"source": example.source, "pieces": pieces}
