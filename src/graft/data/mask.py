"""From learnt characters to learnt tokens. A prompt has exactly the ids that it has when the model is used.

    ids      = tokens of the whole text
    learnt_k = token k lies in a learnt span

A tokenizer may merge the last letters of a prompt with the first of an answer. Then the text is cut there and
tokenised in pieces, so that the ids always begin with those of the prompt alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from graft.data.tokenising import LETTERS, SPARE, encode

# ids; whether each is learnt; (first character, end) of each, or [] if the tokenizer does not report it
Tokens = tuple[list[int], list[bool], list[tuple[int, int]]]


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    starts: where each turn of the assistant begins.  spans: (start, end) of what is learnt, in order.
    All count characters.  head, tail: ids before and after the text; the tail is learnt.
    altered: how many learnt turns the text has differently from what the model would generate.
    unused: names of what the row says and the text does not.
    """

    text: str
    starts: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    altered: int = 0
    unused: tuple[str, ...] = ()


def tokenise(rendered: Sequence[Rendered], tokenizer: Any, most: int | None = None) -> list[Tokens]:
    """Return the tokens of each text. Ids and flags include head and tail, characters do not.

    most: how many tokens are of use: of a text that is much longer, only its beginning is read. It still
    gives more than `most`.
    """
    if most is None:
        return _tokens(rendered, tokenizer)
    cuts = [_beginning(row, LETTERS * most + SPARE) for row in rendered]
    tokens = _tokens(cuts, tokenizer)
    for i, row in enumerate(rendered):
        size = len(cuts[i].text)
        while size < len(row.text) and len(tokens[i][0]) <= most + SPARE:
            size *= 4
            (tokens[i],) = _tokens([_beginning(row, size)], tokenizer)
    return tokens


def _beginning(row: Rendered, size: int) -> Rendered:
    """Return the first characters of a text, with what is learnt of them."""
    if len(row.text) <= size:
        return row
    spans = [(start, min(end, size)) for start, end in row.spans if start < size]
    starts = [start for start in row.starts if start < size]
    return replace(row, text=row.text[:size], starts=starts, spans=spans, tail=[])


def _tokens(rendered: Sequence[Rendered], tokenizer: Any) -> list[Tokens]:
    prompts = [row.text[:start] for row in rendered for start in row.starts]
    whole = _encode([row.text for row in rendered], tokenizer)
    alone = iter(_encode(prompts, tokenizer)[0])
    tokens: list[Tokens] = []
    for row, ids, offsets in zip(rendered, *whole, strict=True):
        before = {start: next(alone) for start in row.starts}
        if not tokenizer.is_fast:
            ids, learnt = _counted(row, ids, tokenizer)
        else:
            cuts = [start for start, prompt in before.items() if ids[: len(prompt)] != prompt]
            counts = {start: len(prompt) for start, prompt in before.items()}
            if cuts:
                ids, offsets, counts = _pieces(row, cuts, tokenizer)
            learnt = _flags(row.text, [(counts.get(start, 0), end) for start, end in row.spans], offsets)
        flags = [False] * len(row.head) + learnt + [True] * len(row.tail)
        tokens.append((row.head + ids + row.tail, flags, offsets))
    return tokens


def _encode(texts: list[str], tokenizer: Any) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    return encode(tokenizer, texts, offsets=tokenizer.is_fast)


def _flags(text: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it is learnt.

    spans: (first token, end character). The first is a token, because byte-level offsets leave out blanks. A
    token that reaches beyond the end is learnt only if nothing but blanks follows there.
    """
    learnt = [False] * len(offsets)
    for first, end in spans:
        for k in range(first, len(offsets)):
            if offsets[k][0] >= end or text[end : offsets[k][1]].strip():
                break
            learnt[k] = True
    return learnt


def _pieces(
    row: Rendered, cuts: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[tuple[int, int]], dict[int, int]]:
    """Tokenise the text in pieces; return ids, offsets, and the number of tokens before each start."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    counts: dict[int, int] = {}
    for begin, end in pairwise([0, *cuts, len(row.text)]):
        inside = [start for start in row.starts if begin <= start < end]
        texts = [row.text[begin:end], *(row.text[begin:start] for start in inside)]
        (more, *before), (where, *_) = _encode(texts, tokenizer)
        counts |= {start: len(ids) + len(prompt) for start, prompt in zip(inside, before, strict=True)}
        ids += more
        offsets += [(begin + a, begin + b) for a, b in where]
    return ids, offsets, counts


def _counted(row: Rendered, ids: list[int], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Return ids and flags without offsets: count the tokens before every border.

    If these tokens do not begin the whole text's, a token crosses a border, and the text is tokenised in
    pieces.
    """
    borders = [border for span in row.spans for border in span]
    before = _encode([row.text[:border] for border in borders], tokenizer)[0]
    if any(ids[: len(prefix)] != prefix for prefix in before):
        edges = [0, *borders, len(row.text)]
        pieces = _encode([row.text[a:b] for a, b in pairwise(edges)], tokenizer)[0]
        flags = [k % 2 == 1 for k, piece in enumerate(pieces) for _ in piece]
        return [token for piece in pieces for token in piece], flags
    learnt = [False] * len(ids)
    for start, end in zip(before[::2], before[1::2], strict=True):
        learnt[len(start) : len(end)] = [True] * (len(end) - len(start))
    return ids, learnt
