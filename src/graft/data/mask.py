"""From learnt characters to learnt tokens, with the ids of the prompt exactly as they will be at use.

    ids      = tokens of the whole text
    learnt_k = token k begins inside a learnt span

A tokenizer may merge the last letters of a prompt with the first of an answer. Then the text is cut at that place and
tokenised in pieces, so that the ids always begin with the ids of the prompt alone.
"""

from collections.abc import Sequence
from typing import Any

from graft.data.templates import Rendered

Tokens = tuple[list[int], list[bool], list[tuple[int, int]]]  # ids, learnt, characters of each token ([] if unknown)


def tokenise(rendered: Sequence[Rendered], tokenizer: Any) -> list[Tokens]:
    """Ids and learnt flags for each text, heads and tails included. Offsets belong to the ids between these."""
    prompts = [row.text[:start] for row in rendered for start, _ in row.spans]
    whole = _encode([row.text for row in rendered], tokenizer)
    alone = iter(_encode(prompts, tokenizer)[0])
    found = []
    for row, ids, offsets in zip(rendered, *whole, strict=True):
        cuts = []
        for start, _ in row.spans:
            prompt = next(alone)
            if ids[: len(prompt)] != prompt:
                cuts.append(start)
        if not tokenizer.is_fast:
            ids, learnt = _counted(row, ids, tokenizer)
        else:
            if cuts:
                ids, offsets = _pieces(row.text, cuts, tokenizer)
            learnt = _flags(row.spans, offsets)
        flags = [False] * len(row.head) + learnt + [True] * len(row.tail)
        found.append((row.head + ids + row.tail, flags, offsets))
    return found


def _encode(texts: list[str], tokenizer: Any) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    if not texts:
        return [], []
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    return out["input_ids"], out.get("offset_mapping", [[]] * len(texts))


def _flags(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    learnt, at = [], 0
    for begin, _ in offsets:
        while at < len(spans) and begin >= spans[at][1]:
            at += 1
        learnt.append(at < len(spans) and begin >= spans[at][0])
    return learnt


def _pieces(text: str, cuts: Sequence[int], tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        (more,), (where,) = _encode([text[begin:end]], tokenizer)
        ids += more
        offsets += [(begin + a, begin + b) for a, b in where]
    return ids, offsets


def _counted(row: Rendered, ids: list[int], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Without offsets: count the tokens before every border; where these are no prefix of the whole, take pieces."""
    borders = [border for span in row.spans for border in span]
    before = _encode([row.text[:border] for border in borders], tokenizer)[0]
    if any(ids[: len(prefix)] != prefix for prefix in before):
        edges = [0, *borders, len(row.text)]
        pieces = _encode([row.text[a:b] for a, b in zip(edges, edges[1:], strict=False)], tokenizer)[0]
        flags = [k % 2 == 1 for k, piece in enumerate(pieces) for _ in piece]
        return [token for piece in pieces for token in piece], flags
    learnt = [False] * len(ids)
    for start, end in zip(before[::2], before[1::2], strict=True):
        learnt[len(start) : len(end)] = [True] * (len(end) - len(start))
    return ids, learnt
