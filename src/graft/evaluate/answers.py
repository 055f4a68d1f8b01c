"""What task heads answer, in words: the class of a text, or the text with its entities in brackets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from graft.core.route import spans
from graft.data.encode import IGNORED, Example
from graft.data.rows import Row
from graft.data.tags import marked, words_of
from graft.errors import AdapterError, DataError
from graft.generate.generate import evaluating
from graft.stages.classify import Labelled

if TYPE_CHECKING:
    from graft.base.base import Base

LONGEST = 512  # tokens of a text that are read


def answers(base: "Base", texts: Sequence[str | Sequence[str]], adapters: Sequence[str]) -> list[str]:
    """One answer per text, all from one forward: rows of different adapters share it.

    texts: strings, or words.  adapters: of each text the one that answers it.  Raises AdapterError for an adapter
    without a task head, DataError for a text that cannot be read.
    """
    heads = [_head(base, name) for name in adapters]
    rows = [_row(text, head) for text, head in zip(texts, heads, strict=True)]
    examples = [_encoded(base, row, head) for row, head in zip(rows, heads, strict=True)]
    width, pad = max(len(example.ids) for example in examples), base.tokenizer.pad_token_id or 0
    ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in examples], device=base.device)
    live = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in examples], device=base.device)
    with torch.no_grad(), evaluating(base):
        found = [row.argmax(-1).tolist() for part in base(ids, adapters, attention_mask=live) for row in part]
    said = [""] * len(rows)
    for i, classes in zip(spans(adapters)[0], found, strict=True):  # logits come adapter by adapter
        said[i] = _worded(rows[i], examples[i], classes, _names(heads[i]))
    return said


def _head(base: "Base", name: str) -> Any:
    able = [known for known, adapter in base.adapters.items() if adapter.head is not None]
    if name not in able:
        known = ", ".join(able) or "none yet"
        raise AdapterError(
            f"{name!r} tells no classes", f"an adapter with a task head ({known})", "attach a TaskHead"
        )
    return base.adapters[name].head


def _names(head: Any) -> Sequence[str]:
    return head.labels or [str(i) for i in range(head.num_labels)]


def _row(text: str | Sequence[str], head: Any) -> Row:
    """The text as a row of the head's task; its label is a dummy that nobody reads."""
    if not head.every_token:
        return Row("", "label", (text if isinstance(text, str) else " ".join(text), _names(head)[0]))
    words = words_of(text) if isinstance(text, str) else list(text)
    return Row("", "tags", (words, [_names(head)[0]] * len(words)))


def _encoded(base: "Base", row: Row, head: Any) -> Example:
    longest = min(LONGEST, getattr(base.model.config, "max_position_embeddings", None) or LONGEST)
    if not row.value[0]:
        raise DataError("an empty text", "at least one word", "leave it out")
    made = Labelled(base.tokenizer, longest, _names(head))([row])
    for reject in made.rejects:
        raise DataError(f"{reject.reason}: {reject.detail}", "a text that the model can read", reject.remedy)
    return made.examples[0]


def _worded(row: Row, example: Example, classes: Any, names: Sequence[str]) -> str:
    if row.kind == "label":
        return names[classes]
    words = row.value[0]
    tags = [names[c] for c, tag in zip(classes, example.parts["tags"], strict=False) if tag != IGNORED]
    return marked(
        words, tags + ["O"] * (len(words) - len(tags))
    )  # words behind the longest text are read by nobody
