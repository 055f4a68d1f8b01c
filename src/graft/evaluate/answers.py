"""What task heads answer, in words: the class of a text, or the text with its entities in brackets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graft.core.positions import context_length
from graft.core.route import spans
from graft.data.encode import IGNORED, Example
from graft.data.rows import Row
from graft.data.tags import marked, words_of
from graft.data.vocabulary import within
from graft.errors import AdapterError, DataError, notice
from graft.generate.generate import evaluating
from graft.stages.classify import Classify, Labelled

if TYPE_CHECKING:
    from graft.base.base import Base

LONGEST = 512  # tokens of a text that are read
CLASSIFY = Classify()


@dataclass(frozen=True)
class Prediction:
    """What a task head says of one text.

    answer: in words.  label, probabilities: the class, and softmax over all classes by name.
    tags: of a head for words, one for each word that was read.  reward: of a head that gives a number.
    """

    answer: str
    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    reward: float | None = None


def answers(
    base: "Base",
    texts: Sequence[str | Sequence[str]],
    adapters: Sequence[str],
    longest: int = LONGEST,
) -> list[str]:
    """Return what `predictions` says of each text in words."""
    return [prediction.answer for prediction in predictions(base, texts, adapters, longest)]


def predictions(
    base: "Base",
    texts: Sequence[str | Sequence[str]],
    adapters: Sequence[str],
    longest: int = LONGEST,
) -> list[Prediction]:
    """Return one prediction per text, all from one forward: rows of different adapters share it.

    texts: strings, pairs of strings (a tuple) that are read together, or lists of words.
    adapters: the name of the adapter that answers each text.  longest: tokens of a text that are read, if the
    model has so many positions; a notice says if a text has more.
    Raises AdapterError for an adapter without a task head, DataError for a text that cannot be read.
    """
    if not texts:
        return []
    heads = [_head(base, name) for name in adapters]
    rows = [_row(text, head) for text, head in zip(texts, heads, strict=True)]
    places = zip(rows, heads, adapters, strict=True)
    examples = [_encoded(base, row, head, name, longest) for row, head, name in places]
    batches = CLASSIFY.batches(base, max(len(example.ids) for example in examples))
    inputs = {name: tensor.to(base.device) for name, tensor in batches.inputs(examples)[0].items()}
    with torch.no_grad(), evaluating(base):
        logits = [row for part in base(inputs.pop("input_ids"), adapters, **inputs) for row in part]
    found: dict[int, Prediction] = {}
    for i, scores in zip(spans(adapters)[0], logits, strict=True):  # logits come adapter by adapter
        found[i] = _prediction(rows[i], examples[i], scores.float(), heads[i])
    return [found[i] for i in range(len(rows))]


def _prediction(row: Row, example: Example, scores: torch.Tensor, head: Any) -> Prediction:
    """Return what a head's logits, (classes,) or (T, classes), say of a row."""
    names = _names(head)
    if head.every_token:
        tags = _tags(example, scores.argmax(-1).tolist(), names)
        words = row.value[0]
        # Words that were cut off are untagged.
        return Prediction(marked(words, [*tags, *["O"] * (len(words) - len(tags))]), tags=tuple(tags))
    if head.num_labels == 1:
        return Prediction(f"{float(scores):.4f}", reward=float(scores))
    label = names[int(scores.argmax())]
    return Prediction(label, label, dict(zip(names, scores.softmax(-1).tolist(), strict=True)))


def _head(base: "Base", name: str) -> Any:
    """Return the task head of an adapter. Raises AdapterError if it has none."""
    with_head = [known for known, adapter in base.adapters.items() if adapter.head is not None]
    if name not in with_head:
        known = ", ".join(with_head) or "there is none yet"
        raise AdapterError(
            f"the adapter {name!r} predicts no classes",
            f"an adapter with a task head ({known})",
            "attach a TaskHead",
        )
    return base.adapters[name].head


def _names(head: Any) -> Sequence[str]:
    """Return the names of a head's classes; their numbers if they have no names."""
    return head.labels or [str(i) for i in range(head.num_labels)]


def _row(text: str | Sequence[str], head: Any) -> Row:
    """Return the text as a row of the head's task, with a dummy label that nothing reads."""
    if not head.every_token:
        pair = isinstance(text, tuple) and len(text) == 2
        return Row("", "label", (text if isinstance(text, str) or pair else " ".join(text), _names(head)[0]))
    words = words_of(text) if isinstance(text, str) else list(text)
    return Row("", "tags", (words, [_names(head)[0]] * len(words)))


def _encoded(base: "Base", row: Row, head: Any, adapter: str, longest: int) -> Example:
    """Return the row as token ids. Raises DataError if it is empty or cannot be read."""
    limit = context_length(base.model.config)
    longest = longest if limit is None else min(longest, limit - base.positions([adapter]))
    if not row.value[0] or (row.kind == "label" and not all(row.asked)):
        raise DataError("an empty text", "at least one word", "leave it out")
    encoded = within(
        Labelled(base.tokenizer, longest, _names(head))([row]),
        base.vocabulary,
        base.tokenizer,
        CLASSIFY.aligned,
    )
    if encoded.cut:
        notice(f"texts are read up to {longest} tokens; the rest does not count")
    for reject in encoded.rejects:
        raise DataError(f"{reject.reason}: {reject.detail}", "a text that the model can read", reject.remedy)
    return encoded.examples[0]


def _tags(example: Example, classes: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the tag of each word that was read.  classes: the index of one for each token."""
    return [names[c] for c, tag in zip(classes, example.parts["tags"], strict=False) if tag != IGNORED]
