"""The data report: what was read, what will be learnt, and what a row looks like to the model.

Every run shows it before step 1 and stores it in its folder as data_report.json; `graft data show` prints it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from graft import storage
from graft.data.encode import IGNORED, NUMBERS, OTHER, TOKEN_TYPES, Example, Examples
from graft.data.pairs import Pairs
from graft.data.rows import Reject, by_reason
from graft.data.templates import Jinja
from graft.errors import DataError, listed
from graft.sizes import counted

SHOWN = 20  # rejects that an error message lists one by one


@dataclass
class DataReport:
    """Facts about the rows of a run, as plain values. Numbers without another unit count rows.

    read = train + eval + Σ rejected + beyond_limit
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # what was taken of folders and what not, in sentences
    read: int = 0
    train: int = 0
    eval: int = 0
    beyond_limit: int = 0  # usable rows that data.limit left out
    sampled: str = ""  # what it took, in words
    rejected: dict[str, int] = field(default_factory=dict)  # by reason
    rejects: list[Reject] = field(default_factory=list)
    examples: int = 0  # of the training rows, as are the next five; a long document gives several
    tokens: int = 0
    tokens_learnt: int = 0
    tokens_unknown: int = 0
    lengths: dict[str, int] = field(default_factory=dict)  # percentiles of the examples' lengths, in tokens
    histogram: list[list[int]] = field(default_factory=list)  # [up to this many tokens, examples]
    max_length: int = 0  # tokens
    cut: int = 0
    cut_sources: list[str] = field(default_factory=list)  # `file:line` of the first few
    rendered: int = 0  # rows with control tokens that are read as tokens
    untemplated: int = 0  # conversations of a tokenizer without a chat template, written by the plain one
    altered_turns: int = 0  # turns that the chat template writes differently from what the model generates
    # what rows say and the model does not read, such as "column 'context'", with the number of such rows
    unused: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0  # training rows that repeat an earlier one
    overlap: int = 0  # eval or test rows that are training rows too
    pairs: Pairs | None = None  # of rows that compare answers
    template: Jinja | None = None
    labels: list[str] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return what the user should look at before training, one sentence each."""
        first = ", ".join(self.cut_sources[:3])
        candidates = [
            (self.beyond_limit, f"data.limit takes {self.sampled}"),
            (self.cut, f"{counted(self.cut, 'row')} cut to {self.max_length} tokens, first {first}"),
            (self.tokens_unknown, f"{counted(self.tokens_unknown, 'token')} unknown to the tokenizer"),
            (
                self.rendered,
                f"{counted(self.rendered, 'row')} with control tokens in the text, which are read as tokens",
            ),
            (
                self.untemplated,
                f"{counted(self.untemplated, 'conversation')} written as User: and Assistant: lines: the "
                "tokenizer has no chat template (data.template)",
            ),
            (
                self.altered_turns,
                f"{counted(self.altered_turns, 'turn')} not as generated: the template rewrites them",
            ),
            (self.duplicates, f"{counted(self.duplicates, 'training row')} repeated from another one"),
            (
                self.overlap,
                f"{counted(self.overlap, 'evaluation row')} also in training: the scores will flatter",
            ),
        ]
        used = self.train + self.eval
        compared = self.pairs.notes() if self.pairs else []
        return (
            self.folders
            + unread(self.unused, used)
            + [text for count, text in candidates if count]
            + compared
        )

    def json(self) -> dict[str, Any]:
        """Return all fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "DataReport":
        """Build a report from what `json` returned."""
        pairs = Pairs(**fields["pairs"]) if fields.get("pairs") else None
        return cls(**fields | {"rejects": [Reject(**reject) for reject in fields["rejects"]], "pairs": pairs})

    def write_rejects(self, path: Path) -> None:
        """Write one JSON object per rejected row: source, reason, detail, remedy."""
        lines = (json.dumps(dataclasses.asdict(reject), ensure_ascii=False) for reject in self.rejects)
        storage.replace(path, "".join(f"{line}\n" for line in lines).encode())


def unread(unused: Mapping[str, int], rows: int) -> list[str]:
    """Return what rows say and the model does not read, a sentence for each share of the rows.

    unused: the number of rows in which each thing is said.  rows: how many there are.

    >>> unread({"column 'id'": 400, "column 'url'": 400, "tools": 1}, 400)
    ["not read: column 'id', column 'url', in 100% of the rows", 'not read: tools, in 1 of 400 rows']
    """
    named: dict[int, list[str]] = {}
    for what, count in unused.items():
        named.setdefault(count, []).append(what)
    shares = {n: f"{n / rows:.0%} of the" if 100 * n >= rows else f"{n} of {rows:,}" for n in named}
    return [f"not read: {', '.join(names)}, in {shares[n]} rows" for n, names in named.items()]


class RejectedRows(DataError):
    """Rows were rejected, and the run must not go on without them.

    report: of all rows, with every reject.  strict: whether data.bad_rows forbids rejects; if not, the
    error is that no row is left.
    """

    def __init__(self, report: DataReport, *, strict: bool) -> None:
        self.report = report
        rejects = report.rejects
        counts = ", ".join(f"{reason} {n}" for reason, n in by_reason(rejects).items())
        # Every reject stands on its own line, and so does "and N more".
        lines = listed((f"{reject}\n " for reject in rejects), SHOWN, separator=" ")
        if strict:
            expected = "every row usable, because data.bad_rows is strict"
            remedy = (
                "repair these rows, or set data.bad_rows=skip to leave them out (rejected.jsonl lists them)"
            )
        else:
            expected = "at least one row to train on"
            remedy = "repair these rows, or give others"
        given = f"{len(rejects)} of {report.read} rows cannot be used ({counts}):\n  {lines.rstrip()}\n"
        super().__init__(given, expected, remedy)


class Shows(Protocol):
    """What a report needs to know of a stage: how a person reads its examples (see `stages.stage`)."""

    aligned: ClassVar[tuple[str, ...]]

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None: ...


def describe(report: DataReport, examples: Examples, tokenizer: Any, stage: Shows) -> None:
    """Fill in the report's facts about the training examples: tokens, lengths, samples."""
    lengths = sorted(examples.lengths())
    parts = {name: column.values for name, column in examples.parts.items()}
    beyond_ids = sum(len(values) for n, values in parts.items() if n not in (*stage.aligned, *NUMBERS))
    targets = (values for name, values in parts.items() if name not in (TOKEN_TYPES, OTHER, *NUMBERS))
    learnt_in_parts = sum(len(values) - values.count(IGNORED) for values in targets)
    if OTHER not in parts:
        learnt_in_parts -= parts["learnt"].count(0) if "learnt" in parts else 0
    report.examples = len(lengths)
    report.tokens = len(examples.ids.values) + beyond_ids
    report.tokens_learnt = examples.learnt.count(1) + learnt_in_parts
    report.lengths = {str(p): lengths[(len(lengths) - 1) * p // 100] for p in (0, 10, 50, 90, 99, 100)}
    step = max(1, -(-lengths[-1] // 16))
    report.histogram = [[top, 0] for top in range(step, lengths[-1] + step, step)]
    for length in lengths:
        report.histogram[max(length - 1, 0) // step][1] += 1
    shown = examples[:1] if len(examples) == 1 else [examples[0], examples[len(examples) // 2]]
    report.samples = [sample(example, tokenizer, stage, report.labels or []) for example in shown]


def sample(
    example: Example, tokenizer: Any, stage: Shows, labels: Sequence[str], *, each_token: bool = False
) -> dict[str, Any]:
    """Return one entry of `DataReport.samples`: {"source": `file:line`, "pieces": [[text, learnt], ...]}.

    each_token: a piece for every token, of rows that are one text.
    """
    pieces = stage.pieces(example, tokenizer, labels)
    if pieces is None and each_token:
        learns = [label != IGNORED for label in example.labels]
        pieces = tokens_apart(example.ids, learns, tokenizer)
    elif pieces is None:
        runs: list[tuple[list[int], bool]] = []
        for token, label in zip(example.ids, example.labels, strict=True):
            if not runs or runs[-1][1] != (label != IGNORED):
                runs.append(([], label != IGNORED))
            runs[-1][0].append(token)
        pieces = [[tokenizer.decode(ids, skip_special_tokens=False), learnt] for ids, learnt in runs]
    return {"source": example.source, "pieces": pieces}


def tokens_apart(ids: Sequence[int], learns: Sequence[bool], tokenizer: Any) -> list[list[Any]]:
    """Return [[text, learnt], ...] with the text of each token; tokens that share a letter stand together.

    A token is decoded behind the one before it: alone some tokenizers drop the space that it begins with.
    """

    def text(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False))

    pieces: list[list[Any]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        before = ids[max(start - 1, 0) : start]
        told = text([*before, *ids[start:end]])[len(text(before)) if before else 0 :]
        if told.endswith("\ufffd") and end < len(ids) and end - start < 4:
            continue  # part of a letter, which has four bytes at most
        pieces.append([told, learns[end - 1]])
        start = end
    return pieces
