"""Refuse rows with tokens that the model has no embedding for.

A tokenizer may have more tokens than the model's table has rows, as where a chat tokenizer was put beside a
base model. That harms only rows which contain such a token.
"""

from collections.abc import Collection
from typing import Any

from graft.data.encode import NUMBERS, Encoded, Example
from graft.data.rows import BadRow


def within(encoded: Encoded, size: int | None, tokenizer: Any, aligned: Collection[str] = ()) -> Encoded:
    """Return the encoded rows without those that hold a token beyond the table; they are rejects.

    size: rows of the model's table; None: unknown, nothing is refused.
    aligned: parts of an example that are no tokens (`Stage.aligned`), beside those of rankings.
    """
    aligned = (*aligned, *NUMBERS)
    examples = encoded.examples
    columns = [examples.ids, *(c for name, c in examples.parts.items() if name not in aligned)]
    if size is None or all(column.values.largest() < size for column in columns):
        return encoded
    beyond: dict[str, int] = {}
    for example in examples:
        token = _largest(example, aligned)
        if token >= size:
            beyond.setdefault(example.source, token)
    kept = type(examples)()
    for example in examples:
        if example.source not in beyond:
            kept.add(example)
    encoded.examples = kept
    encoded.used -= len(beyond)
    encoded.cut = [source for source in encoded.cut if source not in beyond]
    encoded.rejects += [lacking(token, size, tokenizer).at(source) for source, token in beyond.items()]
    return encoded


def _largest(example: Example, aligned: Collection[str]) -> int:
    """Return the largest token of an example."""
    parts = [ids for name, ids in example.parts.items() if name not in aligned]
    return max(max(ids, default=0) for ids in (example.ids, *parts))


def lacking(token: int, size: int, tokenizer: Any) -> BadRow:
    """Return what is wrong with a row or prompt that holds this token.  size: as for `within`."""
    text = tokenizer.convert_ids_to_tokens(token)
    return BadRow(
        "token that the model lacks",
        f"{text!r} is token {token} of the tokenizer, the model has {size}",
        "take the model's own tokenizer, or another chat template",
    )
