"""Texts become ids: the door to a tokenizer for texts of any length and number.

A tokenizer takes about 175 bytes of memory for each byte of what it is given at once. So texts are given in
groups of PIECE characters, and a longer one in pieces, each cut behind a line or a word.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from graft.errors import DataError

PIECE = 1 << 20  # characters at once
LETTERS = 16  # in a token, more than most have
SPARE = 256  # tokens behind those of use: where a text is cut, the last ones may be others
Offsets = list[tuple[int, int]]


def encode(
    tokenizer: Any, texts: Sequence[str], *, offsets: bool = False
) -> tuple[list[list[int]], list[Offsets]]:
    """Return the ids of each text, without tokens around it, and where each token stands if that is asked.

    Raises DataError where the tokenizer breaks down.
    """
    ids: list[list[int]] = []
    places: list[Offsets] = []
    for group in _groups(texts):
        if len(group[0]) > PIECE:
            whole: list[int] = []
            where: Offsets = []
            for at, piece in _pieces(group[0]):
                out = _called(tokenizer, [piece], offsets)
                whole += out["input_ids"][0]
                where += [(a + at, b + at) for a, b in out.get("offset_mapping", [[]])[0]]
            ids.append(whole)
            places.append(where)
        else:
            out = _called(tokenizer, group, offsets)
            ids += out["input_ids"]
            places += out.get("offset_mapping", [[]] * len(group))
    return ids, places


def beginnings(tokenizer: Any, texts: Sequence[str], most: int) -> list[list[int]]:
    """Return the ids of each text, or more than the first `most` of them where it is much longer."""
    size = LETTERS * most + SPARE
    ids, _ = encode(tokenizer, [text[:size] for text in texts])
    for i, text in enumerate(texts):
        longer = size
        while longer < len(text) and len(ids[i]) <= most + SPARE:
            longer *= 4
            ((ids[i],), _) = encode(tokenizer, [text[:longer]])
    return ids


def _called(tokenizer: Any, texts: list[str], offsets: bool) -> Any:
    try:
        return tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets, verbose=False)
    except BaseException as error:  # a panic of the library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"the tokenizer breaks down at a text ({str(error)[:100]}): {texts[0][:40]!r}",
            "a tokenizer that encodes every text",
            "take the tokenizer of the original model, or remove the row",
        ) from None


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in order, as many as have PIECE characters together; a longer one alone."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > PIECE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, piece) of a long text, cut behind a line if there is one, or behind a word."""
    at = 0
    while at < len(text):
        end = at + PIECE
        if end < len(text):
            half = at + PIECE // 2
            end = text.rfind("\n", half, end) + 1 or text.rfind(" ", half, end) + 1 or end
        yield at, text[at:end]
        at = end
