"""From the recipe's `data:` section to encoded examples and the report about them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Protocol

import numpy as np

from graft.data import cache as store
from graft.data.advice import unknown_columns
from graft.data.counted import Counted, Told, silent
from graft.data.encode import Encoded, Encoder, Example, Examples
from graft.data.layouts import Accepts, check_settings, recognise
from graft.data.pairs import examine
from graft.data.read import choices, records, sources, validation
from graft.data.report import DataReport, RejectedRows, describe
from graft.data.row_store import RowStore, all_alike, digests
from graft.data.rows import Reject, Row, by_reason
from graft.data.sample import sample, sampling, split
from graft.data.templates import Jinja
from graft.data.vocabulary import within
from graft.errors import DataError

MOST_CUT_AWAY = 0.01  # share of rows that may lose their whole answer to max_length before the run stops
# Keys of `data:` that decide what the encoded rows look like: an entry of the cache belongs to their values.
CACHED_BY = (
    "train", "eval", "test", "format", "max_length", "bad_rows", "limit", "seed", "columns", "template",
    "tag_names", "control_tokens",
)  # fmt: skip


@dataclass
class Prepared:
    """The data of a training run.

    labels: names of the classes in the order of their indices; empty if rows have none.
    template: the Jinja text that wrote the rows, or several by name; None if none did.
    """

    train: Examples
    eval: Examples | None
    report: DataReport
    labels: list[str] = field(default_factory=list)
    template: Jinja | None = None

    @property
    def tagged(self) -> bool:
        """Whether every word has a class."""
        return "tags" in self.train.parts


@dataclass
class Loaded:
    """Rows in normal form, before any tokenizer: lists if they are few, else on the disk (`row_store`).

    eval: None if no rows are held out.  read: rows of both, with the rejects and those beyond data.limit.
    sampled: what data.limit took, in words; "" if it left none out.
    held_rejects: rows of the files of eval and test that cannot be used; `rejects` has those of eval too.
    """

    train: Sequence[Row]
    eval: Sequence[Row] | None = None
    test: Sequence[Row] | None = None
    rejects: list[Reject] = field(default_factory=list)
    read: int = 0
    beyond_limit: int = 0
    sampled: str = ""
    held_rejects: list[Reject] = field(default_factory=list)


class Stage(Protocol):
    """What `prepare` needs to know of a stage (see `stages.stage`)."""

    labelled: ClassVar[bool]
    aligned: ClassVar[tuple[str, ...]]

    def accepts(self) -> Accepts: ...

    def template(self, settings: Any, tokenizer: Any) -> Jinja | None: ...

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder: ...

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None: ...


def load_rows(settings: Any, accepts: Accepts) -> Loaded:
    """Read and recognise all rows that the settings name; hold out the evaluation rows.

    settings: an object with the attributes of the recipe's `data:`.  accepts: which rows the stage reads.
    Needs no tokenizer and imports no torch.
    Raises UsageError for wrong words in the settings; RejectedRows for defective rows if bad_rows is strict,
    and if no row is left; DataError for rows of two tasks.
    """
    check_settings(accepts, settings.format, settings.columns)
    if settings.train is None:
        raise DataError(
            "data.train is not set", "a file, a folder or a hub name", "set data.train=rows.jsonl"
        )
    loaded = Loaded([])
    usable = _read_rows(settings.train, settings, accepts, loaded)
    if advice := unknown_columns(settings, accepts, _report_of(loaded)):
        raise advice
    if held := held_out(settings):
        before = len(loaded.rejects)
        loaded.eval = _read_rows(held, settings, accepts, loaded, "validation")
        loaded.held_rejects = loaded.rejects[before:]
    _stop_if_strict(_report_of(loaded), settings)
    if getattr(settings, "test", None):
        apart = Loaded([])  # test rows are not trained on: the counts are about the others
        loaded.test = _read_rows(settings.test, settings, accepts, apart, split="test")
        _stop_if_strict(_report_of(apart), settings)
        loaded.held_rejects = apart.rejects
    seed = getattr(settings, "seed", 0)
    loaded.train = sample(usable, settings.limit, seed)
    loaded.beyond_limit = len(usable) - len(loaded.train)
    loaded.sampled = sampling(loaded.train, usable, seed)
    if not loaded.train:
        raise RejectedRows(_report_of(loaded), strict=False)
    _check_one_task(chain(loaded.train, loaded.eval or [], loaded.test or []))
    if isinstance(settings.eval, float) and settings.eval > 0 and not held:
        loaded.train, loaded.eval = split(loaded.train, settings.eval, seed)
    return loaded


def held_out(settings: Any) -> Any:
    """Return where the evaluation rows are: what data.eval names, or files that folders call validation.

    None where a share of the rows is held out, or none at all.
    """
    if not isinstance(settings.eval, float):
        return settings.eval
    return (validation(settings.train) if settings.eval > 0 else None) or None


def prepare(
    settings: Any,
    tokenizer: Any,
    stage: Stage,
    *,
    family: str = "causal",
    vocabulary: int | None = None,
    cache: bool = True,
    told: Told = silent,
) -> Prepared:
    """Do everything between the files and the first batch.

    settings: an object with the attributes of the recipe's `data:`.  family: of the model, "causal",
    "masked", "seq2seq" or "encoder".  vocabulary: tokens that the model has; rows with others are rejects.
    cache: keep the result by the hash of files, tokenizer and settings.
    told: hears how many rows are encoded, as ("rows", done, total).
    Raises what `load_rows` raises, and DataError if max_length cuts away too many answers. Errors name rows
    as `file:line`; RejectedRows carries the report.
    """
    accepts = stage.accepts()
    check_settings(accepts, settings.format, settings.columns)
    template = stage.template(settings, tokenizer)
    name = _cache_name(settings, tokenizer, [repr(stage), family, template, vocabulary]) if cache else None
    if name and (entry := store.load(name)):
        splits, facts = entry
        report = DataReport.from_json(facts)
        return Prepared(splits["train"], splits.get("eval"), report, report.labels or [], template)
    loaded = load_rows(settings, accepts)
    labels = label_names(loaded.train) if stage.labelled else []
    encoder = stage.encoder(tokenizer, family, settings, labels)

    def encoded(rows: Sequence[Row]) -> Encoded:
        return within(encoder(Counted(rows, told)), vocabulary, tokenizer, stage.aligned)

    train = encoded(loaded.train)
    held_out = encoded(loaded.eval) if loaded.eval else None
    report = _report(settings, loaded, train, held_out)
    report.template, report.labels = template, labels or None
    if template is not None and settings.template is None and not tokenizer.chat_template:
        report.untemplated = sum(row.kind == "chat" for row in loaded.train)
    _check_report(report, settings)
    describe(report, train.examples, tokenizer, stage)
    splits = {"train": train.examples} | ({"eval": held_out.examples} if held_out else {})
    if name:
        store.save(name, splits, report.json())
    return Prepared(train.examples, held_out.examples if held_out else None, report, labels, template)


def label_names(rows: Iterable[Row]) -> list[str]:
    """Return the names of the classes: numbers in their order, words in alphabetical order."""
    names = {str(label) for row in rows for label in (row.value[1] if row.kind == "tags" else row.value[1:])}
    numbers = all(re.fullmatch("-?[0-9]{1,18}", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _read_rows(
    where: Any, settings: Any, accepts: Accepts, loaded: Loaded, split: str = "train"
) -> Sequence[Row]:
    """Return the usable rows of some files; add their number and their rejects to `loaded`."""
    rows, tag_names = RowStore(), getattr(settings, "tag_names", ())
    for record in records(where, tagged="tags" in accepts.layouts, split=split):
        loaded.read += 1
        row: Row | Reject
        if isinstance(record, Reject):
            row = record
        else:
            row = recognise(record, accepts, settings.format, settings.columns, tag_names)
        if isinstance(row, Reject):
            loaded.rejects.append(row)
        else:
            rows.append(row)
    return all_alike(rows.rows())


def _report_of(loaded: Loaded) -> DataReport:
    """Return what is known before any row is encoded."""
    return DataReport(read=loaded.read, rejects=loaded.rejects, rejected=by_reason(loaded.rejects))


def _stop_if_strict(report: DataReport, settings: Any) -> None:
    """Raise RejectedRows if there are rejects and the settings forbid to skip them."""
    if report.rejects and settings.bad_rows == "strict":
        raise RejectedRows(report, strict=True)


def _check_one_task(rows: Iterable[Row]) -> None:
    """Raise DataError if some rows have one label and others a tag per word: no head answers both."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.kind in ("label", "tags"):
            first.setdefault(row.kind, row)
    if len(first) > 1:
        raise DataError(
            f"{first['label'].source} has one label and {first['tags'].source} a tag for every word",
            "rows of one task",
            "train an adapter for each of the two",
        )


def _report(settings: Any, loaded: Loaded, train: Encoded, held_out: Encoded | None) -> DataReport:
    """Return the report about reading and encoding; `describe` completes it."""
    encoded = [train, held_out] if held_out else [train]
    rejects = loaded.rejects + [reject for part in encoded for reject in part.rejects]
    keys = digests(loaded.train)
    different = np.unique(keys)
    not_trained_on = [*(loaded.eval or []), *(loaded.test or [])]
    return DataReport(
        files=files_of(settings),
        folders=choices(settings.train, files_of(settings)),
        read=loaded.read,
        beyond_limit=loaded.beyond_limit,
        sampled=loaded.sampled,
        train=train.used,
        eval=held_out.used if held_out else 0,
        rejects=rejects,
        rejected=by_reason(rejects),
        max_length=settings.max_length,
        cut=sum(len(part.cut) for part in encoded),
        cut_sources=[source for part in encoded for source in part.cut][:20],
        rendered=sum(part.rendered for part in encoded),
        altered_turns=sum(part.altered for part in encoded),
        tokens_unknown=sum(part.unknown for part in encoded),
        unused=dict(sum((part.unused for part in encoded), Counter()).most_common()),
        duplicates=len(keys) - len(different),
        overlap=int(np.isin(digests(not_trained_on), different).sum()),
        pairs=examine(loaded.train, not_trained_on, train.examples),
    )


def _check_report(report: DataReport, settings: Any) -> None:
    """Raise DataError unless all rows are used or rejected, few answers are cut away and a row is left."""
    if report.read != report.train + report.eval + report.beyond_limit + sum(report.rejected.values()):
        raise DataError(
            f"{report.read} rows read, {report.train} + {report.eval} used, {report.rejected} rejected, "
            f"{report.beyond_limit} beyond data.limit",
            "every row used, rejected or beyond the limit",
            "report this as a bug of graft",
        )
    _stop_if_strict(report, settings)
    lost = [reject for reject in report.rejects if reject.reason == "cut away"]
    if len(lost) > MOST_CUT_AWAY * report.read:
        raise DataError(
            f"max_length {settings.max_length} cuts the whole answer away in {len(lost)} of {report.read} "
            f"rows, first {lost[0].source}: {lost[0].detail}",
            f"at most {MOST_CUT_AWAY:.0%} of the rows",
            "raise data.max_length, or shorten or remove these rows",
        )
    if not report.train:
        raise RejectedRows(report, strict=False)


def files_of(settings: Any) -> list[str]:
    """Return every file and hub name of the settings, in reading order."""
    named = {
        "train": settings.train,
        "validation": held_out(settings),
        "test": getattr(settings, "test", None),
    }
    return [name for split, where in named.items() if where for name in sources(where, split)]


def _cache_name(settings: Any, tokenizer: Any, facts: list[Any]) -> str | None:
    chosen = [str(getattr(settings, key, None)) for key in CACHED_BY]
    return store.key(files_of(settings), tokenizer, chosen + facts)
