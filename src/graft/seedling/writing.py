"""Text about products, in four kinds to pretrain on, and the task to fine-tune for.

    catalogue     one or two attributes of each of several products, in sentences
    questions     an attribute list or a description, then questions about it with their answers
    lists         attribute lists, some followed by a review that takes up one or two of the values
    descriptions  a paragraph that states every attribute

No pretraining document goes from a list to a description of all of it: that is the task, and it is learnt in fine-tuning.
What pretraining does teach is to find an attribute in a list and to say its value again.
"""

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice

from graft.seedling.phrases import CLOSINGS, OPENINGS, OPINIONS, PHRASES
from graft.seedling.products import Product, products

INSTRUCTION = "Write a product description."
_AN = re.compile(r"(?<=\b[Aa])(?= [aeio])")  # where "a" must become "an"


def documents(n: int, seed: int, split: str = "train") -> list[str]:
    """n pretraining documents, the four kinds in turn by weight; the same for the same arguments in any process."""
    draw = random.Random(f"documents {seed} {split}")
    source = products(split, seed)
    kinds = draw.choices(tuple(_KINDS), weights=tuple(_KINDS.values()), k=n)
    return [_AN.sub("n", kind(draw, source)) for kind in kinds]


def sft_rows(n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
    """n rows {prompt, completion} of the task: an attribute list in, a description that states all of it out."""
    draw = random.Random(f"rows {seed} {split}")
    return [{"prompt": prompt(item), "completion": describe(item, draw)} for item in islice(products(split, seed), n)]


def attribute_list(item: Product) -> str:
    """The list of a prompt: one `key: value` a line."""
    return "\n".join(f"{key}: {value}" for key, value in item.attributes)


def prompt(item: Product) -> str:
    """The task in the form that fine-tuning learns."""
    return f"{INSTRUCTION}\n\n{attribute_list(item)}\n\nDescription:\n"


def describe(item: Product, draw: random.Random) -> str:
    """A paragraph that states every attribute of the product, in the order of its list."""
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


def _sheet(item: Product, draw: random.Random) -> str:
    """An attribute list as shops write it: labels, separators and capitals vary; the order does too."""
    capital, mark, end = draw.choice((str.capitalize, str)), draw.choice((": ", ": ", " - ", " = ")), draw.choice("\n\n\n;")
    pairs = list(item.attributes[2:])
    draw.shuffle(pairs)
    labelled = [(key if draw.random() < 0.7 else draw.choice(PHRASES[key].labels), value) for key, value in pairs]
    if draw.random() < 0.5:
        labelled = [*item.attributes[:2], *labelled]
        head = ""
    else:
        head = f"{item['name']} ({item['type']})\n"
    return head + (end + " " * (end == ";")).join(capital(label) + mark + value for label, value in labelled)


def _question(item: Product, pair: tuple[str, str], draw: random.Random) -> str:
    key, value = pair
    it = draw.choice((f"the {item['name']}", f"the {item['type']}", "it"))
    question = draw.choice(PHRASES[key].questions).format(it=it)
    short = value[0].upper() + value[1:] + "." if draw.random() < 0.3 else f"{value}."
    answer = short if draw.random() < 0.4 else _single(item, pair, draw)
    ask, reply = draw.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("- ", "- ")))
    return f"{ask}{question}\n{reply}{answer}"


def _catalogue(draw: random.Random, source: Iterator[Product]) -> str:
    entries = []
    for item in islice(source, draw.randint(3, 6)):
        pairs = draw.sample(item.attributes[2:], draw.randint(1, 2))
        entries.append(describe(Product((*item.attributes[:2], *pairs)), draw))
    return draw.choice((" ", "\n", "\n\n")).join(entries)


def _questions(draw: random.Random, source: Iterator[Product]) -> str:
    item = next(source)
    known = _sheet(item, draw) if draw.random() < 0.75 else describe(item, draw)
    asked = draw.choices(item.attributes[2:], k=draw.randint(2, 5))
    return known + "\n\n" + "\n".join(_question(item, pair, draw) for pair in asked)


def _lists(draw: random.Random, source: Iterator[Product]) -> str:
    blocks = []
    for item in islice(source, draw.randint(1, 3)):
        block = _sheet(item, draw)
        if draw.random() < 0.8:
            said = [_single(item, pair, draw) for pair in draw.sample(item.attributes[2:], draw.randint(1, 2))]
            said = [draw.choice(OPINIONS), f"I bought the {item['name']}.", *said][draw.randint(0, 2):]
            block += "\n\n" + draw.choice(("Review: ", "", "Note: ")) + " ".join(said)
        blocks.append(block)
    return "\n\n".join(blocks)


def _descriptions(draw: random.Random, source: Iterator[Product]) -> str:
    return "\n\n".join(describe(item, draw) for item in islice(source, draw.randint(1, 3)))


_KINDS: dict[Callable[[random.Random, Iterator[Product]], str], int] = {_catalogue: 2, _questions: 4, _lists: 3, _descriptions: 1}
