"""Turn trees, votes and rows of any known layout into rows of one kind: to learn from, compared, or judged.

    sft          the best answers             {"messages"} | {"prompt", "completion"}
    preference   pairs and rankings           {"prompt", "chosen", "rejected"} | {"prompt", "responses", ...}
    judged       answers with a verdict       {"prompt", "completion", "label"}

Good and bad answers to one prompt become a ranking. Every row that is read is in the result, or is named with
the reason why it is not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graft.data import trees
from graft.data.layouts import COMPARING, Accepts, recognise
from graft.data.normal_form import check_text
from graft.data.rows import BadRow, Record, Reject, Row, with_answers
from graft.data.votes import is_vote, vote_rows

KINDS = ("sft", "preference", "judged")
PLAIN = ("messages", "sharegpt", "alpaca", "prompt_completion")  # rows with one answer
MEANT = "nothing, if that is meant"
CONTRADICTED = BadRow(
    "contradiction", "its answer is good in one row and bad in another", "keep one of the two"
)
ALONE = BadRow("one answer", "there is nothing to compare it with", MEANT)


@dataclass
class Converted:
    """The result of a conversion.

    rows: as they are written.  read: rows of the files.  left: rows and messages that are in no result.
    unused: what the others say beside, with the number of rows.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    left: list[Reject] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


def convert(
    records: Iterable[Record | Reject], to: str, *, paths: str = "best", lang: str | None = None
) -> Converted:
    """Return the rows of a kind (of KINDS) that can be made of records.

    paths, lang: which paths of a tree are conversations, and its language; see `trees`.
    """
    made = Converted()
    nodes: list[Record] = []
    judged: list[Row] = []
    accepts = Accepts(to, (*COMPARING, *PLAIN) if to == "sft" else COMPARING)
    for record in records:
        made.read += 1
        if isinstance(record, Reject):
            made.left.append(record)
        elif trees.is_tree(record.fields):
            nodes.append(record)
        else:
            for row in _rows(made, record, to, accepts):
                if row.kind == "judged" and to == "preference":
                    judged.append(row)
                else:
                    _add(made, row, to)
    for row in _ranked(made, judged):
        _add(made, row, to)
    if nodes:
        messages, left = trees.plant(nodes, lang)
        rows, rest = trees.conversations(messages, paths) if to == "sft" else trees.rankings(messages)
        made.left += [*left.values(), *rest.values()]
        for row in rows:
            _add(made, row, to)
    return made


def _rows(made: Converted, record: Record, to: str, accepts: Accepts) -> list[Row]:
    """Return the rows of one record; none if it was named."""
    try:
        if is_vote(record.fields):
            return vote_rows(record.source, record.fields, to)
    except BadRow as bad:
        made.left.append(bad.at(record.source))
        return []
    row = recognise(record, accepts)
    if isinstance(row, Reject):
        made.left.append(row)
        return []
    return [row]


def _ranked(made: Converted, judged: Sequence[Row]) -> list[Row]:
    """Return good and bad answers to one prompt as a ranking; name the rows that are in none."""
    groups: dict[bytes, list[Row]] = {}
    for row in judged:
        groups.setdefault(row.group(), []).append(row)
    rankings = []
    for rows in groups.values():
        good, bad = (
            {repr(r.value[1]): r.value[1] for r in rows if r.value[2] is side} for side in (True, False)
        )
        both = good.keys() & bad.keys()
        answers = [[said for key, said in side.items() if key not in both] for side in (good, bad)]
        for row in rows:
            if repr(row.value[1]) in both:
                made.left.append(CONTRADICTED.at(row.source))
            elif not all(answers):
                made.left.append(ALONE.at(row.source))
        if all(answers):
            scores = (1.0,) * len(answers[0]) + (0.0,) * len(answers[1])
            said = tuple(answers[0] + answers[1])
            value = rows[0].value[0], said, scores if len(said) > 2 else None
            rankings.append(replace(rows[0], kind="ranking", value=value))
    return rankings


def _add(made: Converted, row: Row, to: str) -> None:
    """Add what a row becomes, or name it."""
    try:
        for text in row.texts():
            check_text(text)
        made.rows += WRITTEN[to](row)
    except BadRow as bad:
        made.left.append(bad.at(row.source))
        return
    made.unused.update(row.unused)
    if row.kind == "ranking" and to == "sft":
        made.unused["worse answers of a ranking"] += 1
    if row.kind == "ranking" and to == "judged" and len(row.value[1]) > 2:
        made.unused["answers between the best and the worst"] += 1


def _learnt(row: Row) -> list[dict[str, Any]]:
    """Return a row with the best answer."""
    if row.kind == "judged" and not row.value[2]:
        raise BadRow("bad answer", "its answer must not be learnt", MEANT)
    if row.kind in ("ranking", "judged"):
        row = with_answers(row)[0]
    if row.kind == "pair":
        return [{"prompt": row.value[0], "completion": row.value[1]}]
    if row.first:
        return [_with_tools(row, {"prompt": row.value[: row.first], "completion": row.value[row.first :]})]
    return [_with_tools(row, {"messages": row.value})]


def _compared(row: Row) -> list[dict[str, Any]]:
    """Return a ranking of two as chosen and rejected, a longer one as a list."""
    if row.kind != "ranking":
        raise ALONE
    prompt, answers, scores = row.value
    if len(answers) > 2:
        order = {"scores": list(scores)} if scores else {"ranks": list(range(1, len(answers) + 1))}
        return [_with_tools(row, {"prompt": prompt, "responses": list(answers), **order})]
    fields = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    if scores:
        fields |= {"score_chosen": scores[0], "score_rejected": scores[1]}
    return [_with_tools(row, fields)]


def _judged(row: Row) -> list[dict[str, Any]]:
    """Return a judged answer; of a ranking, the best as a good one and the worst as a bad one."""
    if row.kind not in ("ranking", "judged"):
        raise BadRow("no verdict", "nothing tells whether its answer is good", MEANT)
    prompt, said, good = row.value
    verdicts: Sequence[tuple[Any, bool]] = (
        [(said, good)] if row.kind == "judged" else [(said[0], True), (said[-1], False)]
    )
    return [
        _with_tools(row, {"prompt": prompt, "completion": answer, "label": label})
        for answer, label in verdicts
    ]


WRITTEN: dict[str, Callable[[Row], list[dict[str, Any]]]] = {
    "sft": _learnt,
    "preference": _compared,
    "judged": _judged,
}


def _with_tools(row: Row, fields: dict[str, Any]) -> dict[str, Any]:
    return fields | ({"tools": row.tools} if row.tools else {})
