"""Tags of words: which words are an entity, and which tokens are a word.

    Anna   Nkomo  of  Oslo
    B-PER  I-PER  O   B-LOC        ->  PER: words 0–1, LOC: word 3

IOB2, read strictly: an entity begins at B-X and continues with I-X of the same type; an I-X that continues
nothing belongs to no entity. This is how seqeval's strict mode reads the CoNLL-2003 task (Tjong Kim Sang and
De Meulder, cs/0306050).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from graft.errors import DataError

Entity = tuple[str, int, int]  # type, first word, word after the last
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return every entity, in order.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC", "I-PER"])
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    spans = []
    for first, tag in enumerate(tags):
        if _part(tag) == "B":
            end = first + 1
            while end < len(tags) and tags[end] == "I" + tag[1:]:
                end += 1
            spans.append((tag[2:], first, end))
    return spans


def first_orphan(tags: Sequence[str]) -> int | None:
    """Return the index of the first I-X that continues no entity, as files in the older IOB1 have it.

    >>> first_orphan(["O", "I-PER"]), first_orphan(["B-PER", "I-PER"])
    (1, None)
    """
    for k, tag in enumerate(tags):
        if _part(tag) == "I" and (k == 0 or tags[k - 1] not in (tag, "B" + tag[1:])):
            return k
    return None


def iob2(names: Iterable[str]) -> bool:
    """Return whether these tags name entities; parts of speech, for example, do not."""
    return {_part(name) for name in names} <= {"B", "I", "O"}


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """Write a tagged text for people: entities in brackets, any other tag after its word and a slash.

    >>> marked(["Anna", "Nkomo", "left", "."], ["B-PER", "I-PER", "O", "O"])
    '[PER Anna Nkomo] left .'
    >>> marked(["cats", "sleep"], ["NOUN", "VERB"])
    'cats/NOUN sleep/VERB'
    """
    if not iob2(tags):
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    shown: list[str] = []
    after = 0
    for kind, first, end in entities(tags):
        shown += [*words[after:first], f"[{' '.join([*filter(None, [kind]), *words[first:end]])}]"]
        after = end
    return " ".join([*shown, *words[after:]])


def words_of(text: str) -> list[str]:
    """Split a plain text into words; each punctuation mark is a word of its own.

    >>> words_of("Anna's e-reader, 3.5 kg.")
    ["Anna's", 'e-reader', ',', '3.5', 'kg', '.']
    """
    return WORD.findall(text)


def word_pieces(sentences: Sequence[Sequence[str]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokenise sentences that are split into words; return (ids, index of the word of each id) for each.

    Special tokens around a sentence are left out. Raises DataError if the tokenizer does not report words.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not report to which word a token belongs",
            "a fast tokenizer",
            "save the tokenizer with a tokenizer.json, or choose another model",
        )

    def encode(words: list[list[str]]) -> Any:
        return tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)

    if not sentences:
        return []
    # Byte-level tokenizers encode " a" and "a" differently: they need the blank that a text has there.
    adds_blanks = (
        encode([["a", "a"]])["input_ids"][0] == tokenizer("a a", add_special_tokens=False)["input_ids"]
    )
    blank = "" if adds_blanks else " "
    encoded = encode([[*words[:1], *(blank + word for word in words[1:])] for words in sentences])
    return [(ids, encoded.word_ids(k)) for k, ids in enumerate(encoded["input_ids"])]


def _part(tag: str) -> str:
    """Return B, I or O, or the prefix of another scheme."""
    return tag.partition("-")[0]
