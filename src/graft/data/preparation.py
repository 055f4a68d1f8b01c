"""From the recipe's `data:` section to encoded examples and the report about them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol

from graft.data import cache as store
from graft.data.encode import Encoded, Encoder, Example, Examples
from graft.data.layouts import Accepts, check_settings, recognise
from graft.data.read import records, sources
from graft.data.report import DataReport, describe
from graft.data.rows import Reject, Row, by_reason, refuse
from graft.errors import DataError

LOST = 0.01  # share of rows whose answers max_length may cut away before the run is refused


@dataclass
class Prepared:
    """What training starts from.

    labels: names of the classes in the order of their indices; none where rows have none.
    template: the Jinja text that wrote the rows.
    """

    train: Examples
    eval: Examples | None
    report: DataReport
    labels: list[str] = field(default_factory=list)
    template: str | None = None

    @property
    def tagged(self) -> bool:
        """Whether every word has a class."""
        return "tags" in self.train.parts


@dataclass
class Loaded:
    """Rows in normal form, before any tokenizer. eval is None where nothing is held out."""

    train: list[Row]
    eval: list[Row] | None = None
    test: list[Row] | None = None
    rejects: list[Reject] = field(default_factory=list)
    read: int = 0


def load_rows(settings: Any, accepts: Accepts, *, seed: int = 0) -> Loaded:
    """Read and recognise all rows that the settings name; hold out the evaluation rows.

    settings: an object with the attributes of the recipe's `data:`.  accepts: which rows the stage reads. Needs no
    tokenizer and imports no torch.
    Raises DataError for defective rows when bad_rows is strict, and where no row is left; UsageError for wrong words.
    """
    check_settings(accepts, settings.format, settings.columns)
    if settings.train is None:
        raise DataError(
            "data.train is not set", "a file, a folder or a hub name", "set data.train=rows.jsonl"
        )
    found = Loaded([])
    found.train = _rows(settings.train, settings, accepts, found, settings.limit)
    if isinstance(settings.eval, str):
        found.eval = _rows(settings.eval, settings, accepts, found)
    _judge(found.rejects, found.read, settings)
    if getattr(settings, "test", None):
        apart = Loaded([])  # test rows are not trained on: the counts are about the others
        found.test = _rows(settings.test, settings, accepts, apart)
        _judge(apart.rejects, apart.read, settings)
    if not found.train:
        raise refuse(found.rejects, found.read)
    _one_task([*found.train, *(found.eval or []), *(found.test or [])])
    if isinstance(settings.eval, float) and settings.eval > 0:
        found.train, found.eval = split(found.train, settings.eval, seed)
    return found


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out exactly round(share · rows), at least one; which ones depends on their content and the seed alone.

    Equal rows stay on one side wherever the number allows it.
    """
    wanted = max(1, round(share * len(rows)))
    if wanted >= len(rows):
        raise DataError(f"data.eval={share} holds out {wanted} of {len(rows)} rows", "rows left to train on",
                        "give more rows, or set data.eval=null")  # fmt: skip
    groups: dict[bytes, list[int]] = {}
    salt = seed.to_bytes(8, "little", signed=True)
    for i, row in enumerate(rows):
        groups.setdefault(row.key(), []).append(i)
    ordered = sorted(groups, key=lambda key: _salted(key, salt))
    held: set[int] = set()
    for key in ordered:
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
    for key in ordered:  # only where rows repeat so often that whole groups do not add up
        held.update(islice((i for i in groups[key] if i not in held), wanted - len(held)))
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


class Stage(Protocol):
    """What the data of a stage need of it (`stages.stage`)."""

    labelled: ClassVar[bool]
    aligned: ClassVar[tuple[str, ...]]

    def accepts(self) -> Accepts: ...

    def template(self, settings: Any, tokenizer: Any) -> str | None: ...

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder: ...

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None: ...


def prepare(
    settings: Any,
    tokenizer: Any,
    stage: Stage,
    *,
    family: str = "causal",
    seed: int = 0,
    cache: bool = True,
) -> Prepared:
    """Do everything between the files and the first batch.

    settings: an object with the attributes of the recipe's `data:`.  family: of the model, "causal", "masked",
    "seq2seq" or "encoder".  cache: keep the result by the hash of files, tokenizer and settings.
    Raises DataError, which names rows as file:line and carries the report as `error.report`.
    """
    accepts = stage.accepts()
    check_settings(accepts, settings.format, settings.columns)
    template = stage.template(settings, tokenizer)
    name = _cache_name(settings, tokenizer, [repr(stage), family, seed, template]) if cache else None
    if name and (kept := store.load(name)):
        splits, facts = kept
        report = DataReport.from_json(facts)
        return Prepared(splits["train"], splits.get("eval"), report, report.labels or [], template)
    loaded = load_rows(settings, accepts, seed=seed)
    labels = label_names(loaded.train) if stage.labelled else []
    encoder = stage.encoder(tokenizer, family, settings, labels)
    train = encoder(loaded.train)
    held = encoder(loaded.eval) if loaded.eval else None
    report = _report(settings, loaded, train, held)
    report.template, report.labels = template, labels or None
    _admit(report, settings)
    describe(report, train.examples, tokenizer, stage)
    splits = {"train": train.examples} | ({"eval": held.examples} if held else {})
    if name:
        store.save(name, splits, report.json())
    return Prepared(train.examples, held.examples if held else None, report, labels, template)


def _rows(where: Any, settings: Any, accepts: Accepts, found: Loaded, limit: int | None = None) -> list[Row]:
    rows = []
    names = getattr(settings, "tag_names", ())
    for record in islice(records(where, tagged="tags" in accepts.layouts), limit):
        found.read += 1
        row = record
        if not isinstance(row, Reject):
            row = recognise(record, accepts, settings.format, settings.columns, names)
        (found.rejects if isinstance(row, Reject) else rows).append(row)
    return rows


def _one_task(rows: Sequence[Row]) -> None:
    """Refuse texts with one label beside words with tags: no head answers both."""
    first = {row.kind: row for row in reversed(rows) if row.kind in ("label", "tags")}
    if len(first) > 1:
        raise DataError(f"{first['label'].source} has one label and {first['tags'].source} a tag for every word",
                        "rows of one task", "train an adapter for each of the two")  # fmt: skip


def _judge(rejects: list[Reject], read: int, settings: Any) -> None:
    if rejects and settings.bad_rows == "strict":
        error = refuse(rejects, read)
        error.report = DataReport(read=read, rejects=rejects, rejected=by_reason(rejects))
        raise error


def _report(settings: Any, loaded: Loaded, train: Encoded, held: Encoded | None) -> DataReport:
    parts = [train, held] if held else [train]
    rejects = loaded.rejects + [reject for part in parts for reject in part.rejects]
    keys = [row.key() for row in loaded.train]
    seen = set(keys)
    outside = (loaded.eval or []) + (loaded.test or [])
    return DataReport(
        files=_files(settings), read=loaded.read, train=train.used, eval=held.used if held else 0, rejects=rejects,
        rejected=by_reason(rejects), max_length=settings.max_length, cut=sum(len(part.cut) for part in parts),
        cut_sources=[at for part in parts for at in part.cut][:20], altered_turns=sum(part.altered for part in parts),
        tokens_unknown=sum(part.unknown for part in parts), duplicates=len(keys) - len(seen),
        overlap=sum(row.key() in seen for row in outside),
    )  # fmt: skip


def _admit(report: DataReport, settings: Any) -> None:
    """The laws every run must keep; raises DataError where one is broken."""
    if report.read != report.train + report.eval + sum(report.rejected.values()):
        raise DataError(f"{report.read} rows read, {report.train} + {report.eval} used, {report.rejected} rejected",
                        "every row used or rejected", "report this as a bug of graft")  # fmt: skip
    _judge(report.rejects, report.read, settings)
    lost = [reject for reject in report.rejects if reject.reason == "cut away"]
    if len(lost) > LOST * report.read:
        raise DataError(f"max_length {settings.max_length} cuts the whole answer away in {len(lost)} of {report.read} "
                        f"rows, first {lost[0].source}: {lost[0].detail}", f"at most {LOST:.0%} of the rows",
                        "raise data.max_length, or shorten or remove these rows")  # fmt: skip
    if not report.train:
        raise refuse(report.rejects, report.read)


def label_names(rows: Sequence[Row]) -> list[str]:
    """Names of the classes: numbers in their order, words in alphabetical order."""
    names = {str(label) for row in rows for label in (row.value[1] if row.kind == "tags" else row.value[1:])}
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def _files(settings: Any) -> list[str]:
    named = [settings.train, settings.eval, getattr(settings, "test", None)]
    return [name for where in named if where and not isinstance(where, float) for name in sources(where)]


def _cache_name(settings: Any, tokenizer: Any, facts: list[Any]) -> str | None:
    keys = (
        "train",
        "eval",
        "test",
        "format",
        "max_length",
        "bad_rows",
        "limit",
        "columns",
        "template",
        "tag_names",
    )
    chosen = [str(getattr(settings, key, None)) for key in keys]
    return store.key(_files(settings), tokenizer, chosen + facts)


def _salted(key: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(key, key=salt, digest_size=8).digest()
