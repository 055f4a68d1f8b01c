"""Set runs side by side: the settings in which they differ, their scores, and means over seeds.

Runs that differ in nothing but train.seed, and were scored on the same rows, are a group. Its mean stands
with the standard deviation of a sample, √(Σ(x − mean)² / (n − 1)), which needs two runs. Needs no torch.
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import listed, notice
from graft.recipe.stages import stage_cards
from graft.recipe.text import inline
from graft.runs.records import RunRecord, record_of
from graft.runs.result import SCORES

SEED = "train.seed"
LOWER = ("loss", "perplexity")  # metrics of which less is better
NEAR = 1e-3  # share by which scores before training may differ, as the order of additions makes them


@dataclass(frozen=True)
class Line:
    """One run in a table.

    settings: all that decide its steps, by dotted key.  before, after: its scores.
    rows: fingerprint of the rows that they are about.  scored: how many.
    group: equal for runs that differ in their seed alone.
    """

    name: str
    after: Mapping[str, float]
    before: Mapping[str, float]
    rows: str
    scored: int | None
    settings: Mapping[str, Any]
    group: str


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.  mean, deviation: by metric."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]

    @property
    def n(self) -> int:
        """How many runs it has."""
        return len(self.names)


@dataclass(frozen=True)
class Comparison:
    """Some runs in one table.

    columns: settings that differ, by dotted key, in the order of a recipe.  metrics: all that any run has.
    groups: of all runs, also those that are alone.  warnings: why scores may not be compared.
    """

    lines: Sequence[Line]
    columns: Sequence[str]
    metrics: Sequence[str]
    groups: Sequence[Group]
    warnings: Sequence[str]

    @property
    def repeated(self) -> list[Group]:
        """The groups of several seeds."""
        return [group for group in self.groups if group.n > 1]

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "runs": [
                {
                    "run": line.name,
                    "settings": {key: line.settings.get(key) for key in self.columns},
                    "before": dict(line.before),
                    "after": dict(line.after),
                    "scored": line.scored,
                    "rows": line.rows,
                }
                for line in self.lines
            ],
            "groups": [
                {
                    "runs": list(group.names),
                    "n": group.n,
                    "settings": {key: group.settings.get(key) for key in self.columns if key != SEED},
                    "mean": dict(group.mean),
                    "deviation": dict(group.deviation),
                }
                for group in self.repeated
            ],
            "warnings": list(self.warnings),
        }

    def csv(self) -> str:
        """Return the runs as CSV, then the means over seeds, with n and the deviations."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        deviations = [f"{name} deviation" for name in self.metrics] if self.repeated else []
        known = [name for name in self.metrics if any(name in line.before for line in self.lines)]
        before = [f"{name} before" for name in known]
        writer.writerow(("run", "n", *self.columns, *self.metrics, *deviations, *before))
        for line in self.lines:
            scores = [_exact(line.after.get(name)) for name in self.metrics]
            earlier = [_exact(line.before.get(name)) for name in known]
            row = [line.name, 1, *(cell(line.settings.get(key)) for key in self.columns), *scores]
            writer.writerow([*row, *("" for _ in deviations), *earlier])
        for group in self.repeated:
            settings = ["" if key == SEED else cell(group.settings.get(key)) for key in self.columns]
            means = [_exact(group.mean.get(name)) for name in self.metrics]
            spread = [_exact(group.deviation.get(name)) for name in self.metrics]
            writer.writerow(["mean", group.n, *settings, *means, *spread, *("" for _ in before)])
        return text.getvalue()


def cell(setting: Any) -> str:
    """Return a setting as a recipe writes it; "-" for one that the run does not have."""
    return "-" if setting is None else inline(setting)


def _exact(score: float | None) -> str:
    return "" if score is None else repr(float(score))


def line_of(
    name: str,
    record: RunRecord | None,
    columns: Mapping[str, Mapping[str, float]] | None = None,
    rows: str = "",
    scored: int | None = None,
) -> Line | None:
    """Return a run's line in a table; None if there are no scores.

    record: of its folder, None for a model.  columns: scores that were measured now, before and after, on
    these `rows`; by default those of the record.
    """
    if columns is None:
        if record is None or not record.after:
            return None
        before, after, rows, scored = record.before, record.after, record.rows, record.scored
    else:
        measured = [*columns.values()]
        before, after = measured[0] if len(measured) > 1 else {}, measured[-1]
    settings = record.settings if record is not None else {"model": name}
    return Line(name, after, before, rows, scored, settings, _group(name, record, rows))


def _group(name: str, record: RunRecord | None, rows: str) -> str:
    """Return a text that is equal for runs which differ in their seed alone."""
    if record is None or not (record.identity or record.settings):
        return name
    known = dict(record.identity or record.settings)
    fresh = record.recipe is not None and record.recipe.fresh  # its first weights are drawn by the seed
    kept = {
        key: value
        for key, value in known.items()
        if key != SEED and not key.startswith("path of ") and not (fresh and key.endswith("the base"))
    }
    return json.dumps([kept, rows], sort_keys=True, default=str)


def recorded(names: Sequence[str]) -> Comparison:
    """Return the comparison of runs by what their folders record. Names without scores are left out."""
    lines = []
    for name in names:
        record = record_of(name)
        if record is not None and f"{SCORES} is damaged" in record.damage:
            again = f"graft train {record.folder} makes it again"
            notice(f"{record.folder / SCORES} is damaged: its scores are not used; {again}")
        lines.append(line_of(name, record))
    return comparison([line for line in lines if line is not None])


def comparison(lines: Sequence[Line]) -> Comparison:
    """Return a table of these lines."""
    metrics = dict.fromkeys(name for line in lines for name in line.after)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return Comparison(
        lines,
        differing([line.settings for line in lines]),
        list(metrics),
        [_averaged(group) for group in groups.values()],
        warnings(lines),
    )


def _averaged(lines: Sequence[Line]) -> Group:
    """Return a group with the mean of each metric that all its runs have."""
    shared = [name for name in lines[0].after if all(name in line.after for line in lines)]
    values = {name: [float(line.after[name]) for line in lines] for name in shared}
    return Group(
        tuple(line.name for line in lines),
        lines[0].settings,
        {name: statistics.fmean(found) for name, found in values.items()},
        {name: statistics.stdev(found) for name, found in values.items() if len(found) > 1},
    )


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of settings that differ, those of the method and the stage only within one of them.

    >>> differing([{"method": "lora", "method.r": 8}, {"method": "ia3", "method.x": 1}])
    ['method']
    """
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        section = key.partition(".")[0]
        own = section in ("method", "stage") and key != section
        values: dict[Any, set[str]] = {}
        for one in settings:
            if key in one or not own:
                told = json.dumps(one.get(key), sort_keys=True, default=str)
                values.setdefault(one.get(section) if own else None, set()).add(told)
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found


def short(columns: Sequence[str]) -> dict[str, str]:
    """Return a name for the column of each setting: the end of its key, where no other one ends so.

    >>> short(["method", "train.seed", "data.seed", "train.lr"])
    {'method': 'method', 'train.seed': 'train.seed', 'data.seed': 'data.seed', 'train.lr': 'lr'}
    """
    ends = [key.rpartition(".")[2] for key in columns]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(columns, ends, strict=True)}


def warnings(lines: Sequence[Line]) -> list[str]:
    """Return why the scores of some runs may not be set side by side, a sentence each."""
    reasons = []
    by_rows: dict[str, list[Line]] = {}
    for line in lines:
        by_rows.setdefault(line.rows, []).append(line)
    if len(by_rows) > 1:
        counts = [
            f"{listed(line.name for line in alike)}: {alike[0].scored or '?'} rows"
            for alike in by_rows.values()
        ]
        reasons.append(
            f"the held-out rows differ ({' and '.join(counts)}): the scores cannot be compared; "
            "use the same data, data.seed, data.eval and evaluate.limit"
        )
    starting = [line for line in lines if line.before]
    apart = [
        f"{starting[0].name} and {line.name}: {text}"
        for line in starting[1:]
        if (text := _apart(starting[0], line))
    ]
    if apart:
        reasons.append(f"the scores before training differ ({listed(apart, 3, '; ')}): not the same start")
    return reasons


def _apart(first: Line, other: Line) -> str:
    """Return in which scores two runs differ before training; "" if their heads were drawn by other seeds."""
    card = stage_cards().get(str(other.settings.get("stage")))
    if card is not None and card.headed and first.settings.get(SEED) != other.settings.get(SEED):
        return ""
    metrics = [
        f"{name} {value:.4g} and {other.before[name]:.4g}"
        for name, value in first.before.items()
        if name in other.before and abs(value - other.before[name]) > NEAR * abs(value)
    ]
    return ", ".join(metrics)


def best(found: Comparison) -> str | None:
    """Return the name of the run that is best by the first metric; None without scores."""
    if not found.metrics:
        return None
    metric = found.metrics[0]
    scored = [line for line in found.lines if metric in line.after]
    chosen = (min if metric in LOWER else max)(scored, key=lambda line: line.after[metric])
    return chosen.name
