"""Which metrics a stage has, and which rows a metric can use."""

from collections.abc import Sequence

from graft.base.base import Base
from graft.data.rows import BadRow, Reject, Row
from graft.data.templates import Prompt, prompt_ids
from graft.data.vocabulary import lacking
from graft.errors import UsageError
from graft.evaluate.metrics import CLASS, LOSS, TEXT, check
from graft.evaluate.tasks import cases
from graft.stages.stage import Stage

WRITING = ("causal", "seq2seq")  # families of models that write


def check_metrics(metrics: Sequence[str], stage: Stage, family: str) -> None:
    """Raise UsageError for a metric that is not known, or that rows of this stage do not have.

    family: of the model.
    """
    check(metrics, stage.metrics)
    own = ("loss", *CLASS) if stage.labelled else (*dict.fromkeys((*LOSS, *stage.metrics)),)
    asks = stage.asks and family in WRITING
    for name in metrics:
        if name not in own and not (asks and by_texts([name])):
            raise UsageError(
                f"evaluate.metrics={name} for stage {stage.name()} on a {family} model",
                f"one of {', '.join([*own, *(TEXT if asks else ())])}",
                "choose one of these",
            )


def by_texts(metrics: Sequence[str]) -> bool:
    """Return whether one of the metrics scores generated texts."""
    return any(name in TEXT or ":" in name for name in metrics)


def by_examples(metrics: Sequence[str]) -> bool:
    """Return whether one of the metrics scores encoded rows: their loss, or their classes."""
    return any(name not in TEXT and ":" not in name for name in metrics)


def unanswerable(base: Base, rows: Sequence[Row], context: int | None) -> list[Reject]:
    """Return the rows for which no text can be generated and compared, with the reason.

    context: tokens that a prompt and its answer have room for; None: any number.
    """
    rejects = []
    for row in rows:
        if bad := _obstacle(base, row, context):
            rejects.append(bad.at(row.source))
    return rejects


def _obstacle(base: Base, row: Row, context: int | None) -> BadRow | None:
    """Return why no answer to a row can be scored, or None."""
    asked = cases([row])
    if not asked:
        return BadRow("no answer", "nothing to compare a text with", "give prompts with their answers")
    return obstacle(base, asked[0].prompt, context)


def obstacle(base: Base, prompt: Prompt, context: int | None) -> BadRow | None:
    """Return why a prompt cannot be asked, or None.  context: as for `unanswerable`."""
    try:
        ids = prompt_ids(prompt, base.tokenizer, family=base.family)
    except BadRow as bad:
        return bad
    if ids and max(ids) >= base.vocabulary:
        return lacking(max(ids), base.vocabulary, base.tokenizer)
    if context is not None and len(ids) >= context:
        detail = f"{len(ids)} tokens, the model has room for {context}"
        return BadRow("prompt too long", detail, "shorten the prompt")
    return None
