"""What task heads answer, in words: the class of a text, or the text with its entities in brackets."""

from collections.abc import Sequence
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


def answers(
    base: "Base",
    texts: Sequence[str | Sequence[str]],
    adapters: Sequence[str],
    longest: int = LONGEST,
) -> list[str]:
    """Return one answer per text, all from one forward: rows of different adapters share it.

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
    texts_by_row = [""] * len(rows)
    for i, scores in zip(spans(adapters)[0], logits, strict=True):  # logits come adapter by adapter
        if heads[i].num_labels == 1 and not heads[i].every_token:  # a reward
            texts_by_row[i] = f"{float(scores):.4f}"
        else:
            texts_by_row[i] = _in_words(rows[i], examples[i], scores.argmax(-1).tolist(), _names(heads[i]))
    return texts_by_row


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


def _in_words(row: Row, example: Example, classes: Any, names: Sequence[str]) -> str:
    """Return the predicted class's name, or the row's words with entities marked.

    classes: the index of a text's class, or one index per token.
    """
    if row.kind == "label":
        return names[classes]
    words = row.value[0]
    tags = [names[c] for c, tag in zip(classes, example.parts["tags"], strict=False) if tag != IGNORED]
    return marked(words, tags + ["O"] * (len(words) - len(tags)))  # words that were cut off are untagged
