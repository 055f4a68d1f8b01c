"""Write text about products, in five kinds to pretrain on, and the task to fine-tune for.

    cards         a short attribute list, and some of it said, asked or listed again
    catalogue     one or two attributes of each of several products, in sentences
    questions     an attribute list or a description, then questions about it with their answers
    lists         attribute lists, some followed by a review that takes up one or two of the values
    descriptions  a paragraph that states every attribute

No pretraining document goes from a list to a description of all of it: that is the task, which fine-tuning
teaches. Pretraining does teach to find an attribute in a list and to repeat its value. Cards are most of the
text because they are short: the fewer words there are to look back at, the sooner a model learns to look back
(on longer documents alone, none of ours had learned it after a million tokens).
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from graft.seedling.phrases import CLOSINGS, OPENINGS, OPINIONS, PHRASES
from graft.seedling.products import Product, products

INSTRUCTION = "Write a product description."
_AN = re.compile(r"(?<=\b[Aa])(?= [aeio])")  # where "a" must become "an"


def documents(n: int, seed: int, split: str = "train") -> list[str]:
    """Return n pretraining documents, the kinds drawn by weight.

    The same arguments give the same documents in any process.
    """
    draw = random.Random(f"documents {seed} {split}")
    source = products(split, seed)
    kinds = draw.choices(tuple(_KINDS), weights=tuple(_KINDS.values()), k=n)
    return [_AN.sub("n", kind(draw, source)) for kind in kinds]


def sft_rows(n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
    """Return n rows {prompt, completion}: an attribute list, and a description that states all of it."""
    draw = random.Random(f"rows {seed} {split}")
    return [
        {"prompt": prompt(item), "completion": describe(item, draw)}
        for item in islice(products(split, seed), n)
    ]


def attribute_list(item: Product) -> str:
    """Return the list of a prompt: one `key: value` a line."""
    return "\n".join(f"{key}: {value}" for key, value in item.attributes)


def prompt(item: Product) -> str:
    """Return the task in the form that fine-tuning learns."""
    return f"{INSTRUCTION}\n\n{attribute_list(item)}\n\nDescription:\n"


def describe(item: Product, draw: random.Random) -> str:
    """Return a paragraph that states every attribute of the product, in the order of its list."""
    rest = list(item.attributes[2:])
    opening = draw.choice(OPENINGS).format(name=item["name"], type=item["type"])
    if rest and draw.random() < 0.5:
        key, value = rest.pop(0)
        opening += " " + draw.choice(PHRASES[key].attached).format(v=value)
    sentences = [opening + "."]
    while rest:
        taken, rest = rest[:2], rest[2:]
        if len(taken) == 2 and draw.random() < 0.6:
            sentences.append(_joined(item, taken, draw))
        else:
            sentences += [_single(item, pair, draw) for pair in taken]
    if draw.random() < 0.4:
        sentences.append(draw.choice(CLOSINGS))
    return _AN.sub("n", " ".join(sentences))


def _subject(item: Product, draw: random.Random) -> str:
    return draw.choice(("It", "It", f"The {item['name']}", f"This {item['type']}"))


def _joined(item: Product, pairs: list[tuple[str, str]], draw: random.Random) -> str:
    said = [draw.choice(PHRASES[key].predicates).format(v=value) for key, value in pairs]
    return f"{_subject(item, draw)} {said[0]} and {said[1]}."


def _single(item: Product, pair: tuple[str, str], draw: random.Random) -> str:
    key, value = pair
    if draw.random() < 0.5:
        return draw.choice(PHRASES[key].sentences).format(v=value)
    return f"{_subject(item, draw)} {draw.choice(PHRASES[key].predicates).format(v=value)}."


@dataclass(frozen=True)
class Style:
    """How a shop writes its attribute lists."""

    capital: bool
    spoken: bool  # labels as people say them ("made of") instead of the keys
    mark: str
    end: str

    @classmethod
    def drawn(cls, draw: random.Random) -> "Style":
        mark, end = draw.choice((": ", ": ", ": ", " - ", " = ")), draw.choice(("\n", "\n", "\n", "; "))
        return cls(draw.random() < 0.3, draw.random() < 0.2, mark, end)

    def labels(self, item: Product, draw: random.Random) -> dict[str, str]:
        """Return what this shop calls each attribute of the product."""
        keys = [key for key, _ in item.attributes]
        said = {
            key: draw.choice(PHRASES[key].labels) if self.spoken and key in PHRASES else key for key in keys
        }
        return {key: label.capitalize() if self.capital else label for key, label in said.items()}


def _sheet(item: Product, draw: random.Random) -> tuple[str, list[str], str]:
    """Return an attribute list as shops write it, in a drawn order: its text, its lines, its separator."""
    style = Style.drawn(draw)
    labels = style.labels(item, draw)
    lines = [labels[key] + style.mark + value for key, value in item.attributes]
    rest = lines[2:]
    draw.shuffle(rest)
    if draw.random() < 0.5:
        return style.end.join([*lines[:2], *rest]), [*lines[:2], *rest], style.end
    return f"{item['name']} ({item['type']})\n" + style.end.join(rest), rest, style.end


def _excerpt(lines: list[str], end: str, draw: random.Random) -> str:
    """Return a few lines of a list again, for hurried readers: neighbours, or scattered ones."""
    n = draw.randint(2, min(4, len(lines)))
    start = draw.randint(0, len(lines) - n)
    few = lines[start : start + n] if draw.random() < 0.5 else draw.sample(lines, n)
    return draw.choice(("In short:\n", "Look again:\n", "Most asked:\n")) + end.join(few)


def _question(item: Product, pair: tuple[str, str], draw: random.Random) -> str:
    key, value = pair
    it = draw.choice((f"the {item['name']}", f"the {item['type']}", "it"))
    question = draw.choice(PHRASES[key].questions).format(it=it)
    short = value[0].upper() + value[1:] + "." if draw.random() < 0.3 else f"{value}."
    answer = short if draw.random() < 0.4 else _single(item, pair, draw)
    ask, reply = draw.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("- ", "- ")))
    return f"{ask}{question}\n{reply}{answer}"


def _cards(draw: random.Random, source: Iterator[Product]) -> str:
    item = next(source)
    few = draw.sample(
        item.attributes[2:], min(len(item.attributes) - 2, draw.choice((1, 1, 1, 2, 2, 3, 3, 4, 6)))
    )
    card = Product((*item.attributes[:2], *few))
    text, form = _sheet(card, draw)[0], draw.random()
    if form < 0.3:
        return text + "\n\n" + _sheet(card, draw)[0]
    again = draw.sample(few, min(len(few), draw.randint(1, 2)))
    if form < 0.6:
        return text + "\n\n" + "\n".join(_question(card, pair, draw) for pair in again)
    return text + "\n\n" + " ".join(_single(card, pair, draw) for pair in again)


def _catalogue(draw: random.Random, source: Iterator[Product]) -> str:
    entries = []
    for item in islice(source, draw.randint(3, 6)):
        pairs = draw.sample(item.attributes[2:], draw.randint(1, 2))
        entries.append(describe(Product((*item.attributes[:2], *pairs)), draw))
    return draw.choice((" ", "\n", "\n\n")).join(entries)


def _questions(draw: random.Random, source: Iterator[Product]) -> str:
    item = next(source)
    known = _sheet(item, draw)[0] if draw.random() < 0.75 else describe(item, draw)
    asked = draw.sample(item.attributes[2:], draw.randint(2, len(item.attributes) - 2))
    return known + "\n\n" + "\n".join(_question(item, pair, draw) for pair in asked)


def _lists(draw: random.Random, source: Iterator[Product]) -> str:
    blocks = []
    for item in islice(source, draw.choice((1, 1, 1, 2))):
        text, lines, end = _sheet(item, draw)
        blocks.append(text)
        for more in draw.sample((_tags, _review, None, None), draw.randint(1, 2)):
            blocks.append(more(item, draw) if more else _excerpt(lines, end, draw))
    return "\n\n".join(blocks)


def _tags(item: Product, draw: random.Random) -> str:
    """Return one to three short labels for the shelf: the name and up to three values."""
    lines = []
    for _ in range(draw.randint(1, 3)):
        values = [value for _, value in draw.sample(item.attributes[1:], draw.randint(1, 3))]
        lines.append(item["name"] + draw.choice((", ", ": ", " / ")) + ", ".join(values))
    return draw.choice(("Label: ", "Tag: ", "")) + "\n".join(lines)


def _review(item: Product, draw: random.Random) -> str:
    said = [_single(item, pair, draw) for pair in draw.sample(item.attributes[2:], draw.randint(1, 2))]
    said = [draw.choice(OPINIONS), f"I bought the {item['name']}.", *said][draw.randint(0, 2) :]
    return draw.choice(("Review: ", "", "Note: ")) + " ".join(said)


def _descriptions(draw: random.Random, source: Iterator[Product]) -> str:
    return "\n\n".join(describe(item, draw) for item in islice(source, draw.randint(1, 3)))


_KINDS: dict[Callable[[random.Random, Iterator[Product]], str], int] = {
    _cards: 24,
    _catalogue: 1,
    _questions: 1,
    _lists: 1,
    _descriptions: 1,
}
