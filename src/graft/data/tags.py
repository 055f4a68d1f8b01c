"""Tags of words: which words are an entity, and which tokens are a word.

    Anna   Nkomo  of  Oslo
    B-PER  I-PER  O   B-LOC        ->  PER: words 0–1, LOC: word 3

IOB2, read strictly: an entity begins at B-X and goes on with I-X of the same type; an I-X that continues nothing
belongs to no entity. That is the CoNLL-2003 task (Tjong Kim Sang and De Meulder, cs/0306050) as seqeval's strict mode
reads it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from graft.errors import DataError

Entity = tuple[str, int, int]  # type, first word, word behind the last
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


def entities(tags: Sequence[str]) -> list[Entity]:
    """Every entity, in order.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC", "I-PER"])
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    found = []
    for first, tag in enumerate(tags):
        if _part(tag) == "B":
            end = first + 1
            while end < len(tags) and tags[end] == "I" + tag[1:]:
                end += 1
            found.append((tag[2:], first, end))
    return found


def astray(tags: Sequence[str]) -> int | None:
    """The first word whose I-X continues nothing, as IOB1 files have it.

    >>> astray(["O", "I-PER"]), astray(["B-PER", "I-PER"])
    (1, None)
    """
    for k, tag in enumerate(tags):
        if _part(tag) == "I" and (k == 0 or tags[k - 1] not in (tag, "B" + tag[1:])):
            return k
    return None


def iob2(names: Iterable[str]) -> bool:
    """Whether these tags speak of entities; parts of speech, for example, do not."""
    return {_part(name) for name in names} <= {"B", "I", "O"}


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """A tagged text to read: entities in brackets, other tags behind a stroke.

    >>> marked(["Anna", "Nkomo", "left", "."], ["B-PER", "I-PER", "O", "O"])
    '[PER Anna Nkomo] left .'
    >>> marked(["cats", "sleep"], ["NOUN", "VERB"])
    'cats/NOUN sleep/VERB'
    """
    if not iob2(tags):
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    shown, after = [], 0
    for kind, first, end in entities(tags):
        shown += [*words[after:first], f"[{' '.join([*filter(None, [kind]), *words[first:end]])}]"]
        after = end
    return " ".join([*shown, *words[after:]])


def words_of(text: str) -> list[str]:
    """The words of a plain text, its punctuation apart.

    >>> words_of("Anna's e-reader, 3.5 kg.")
    ["Anna's", 'e-reader', ',', '3.5', 'kg', '.']
    """
    return WORD.findall(text)


def pieces(sentences: Sequence[Sequence[str]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(ids, the word of each id) of every sentence, without the tokenizer's own special tokens.

    Raises DataError for a tokenizer that cannot tell which word a token is of.
    """
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} does not tell which word a token is of", "a fast tokenizer",
                        "save it with a tokenizer.json, or take another model")  # fmt: skip
    encode = lambda words: tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
    # Byte-level tokenizers write a word otherwise where a blank is before it: then it gets the blank of a text.
    alike = encode([["a", "a"]])["input_ids"][0] == tokenizer("a a", add_special_tokens=False)["input_ids"]
    spoken = [
        list(words) if alike else [*words[:1], *(" " + word for word in words[1:])] for words in sentences
    ]
    encoded = encode(spoken) if spoken else {"input_ids": []}
    return [(ids, encoded.word_ids(k)) for k, ids in enumerate(encoded["input_ids"])]


def _part(tag: str) -> str:
    """B, I or O; other prefixes of other schemes."""
    return tag.partition("-")[0]
