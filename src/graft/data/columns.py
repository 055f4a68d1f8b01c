"""The names that columns of rows have in the field, and which columns of a row were read.

What a row says and nobody reads is not lost in silence: a layout reads its columns through `Fields`, and what
it left unread is named in the data report. So no list of unimportant columns has to be kept.
"""

from collections.abc import Mapping
from typing import Any

TEXTS = ("text", "content", "document")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "answers"),
    ("question", "sql"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
)
OUTPUTS = ("output", "response", "answer", "completion")  # the answer to an instruction
CONTEXT = "context"  # what a question is about, or an instruction needs
SYSTEM = ("system", "system_prompt", "system_message")
LABELS = ("label", "label_text", "intent", "gold_label", "labels")
LABELLED = ("text", "sentence", "content", "utterance")
# Two texts with one label, in the order in which a model reads them; `numbered` finds more of them.
TEXT_PAIRS = (
    ("text", "text_pair"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
)
ENDINGS = (("1", "2"), ("_a", "_b"), ("A", "B"))  # sentence1 and sentence2, text_a and text_b, ...
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
WEIGHT = "weight"  # how much a row counts
VERDICTS = ("label", "kto_tag")  # whether an answer is a good one
FLAGS = {"chosen": True, "rejected": False}  # the value that says it is
WORTH = frozenset((WEIGHT, *VERDICTS, *FLAGS))
# Our names of columns, which data.columns may map.
COLUMNS = (
    "text", "text_pair", "label", "messages", "tools", "prompt", "completion", "context", "instruction",
    "input", "output", "system", "history", "conversations", "tokens", "tags", "chosen", "rejected", "margin",
    "completions", "scores", "ranks",
)  # fmt: skip
# Rows that compare answers: what is asked, the better and the worse answer, and by how much.
ASKED = ("prompt", "question", "instruction", "query", "input", "conversations", "conversation", "messages")
CHOICES = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
MARGIN = "margin"
SCORE_PAIRS = tuple(
    (form.format(side="chosen", word=word), form.format(side="rejected", word=word))
    for word in ("score", "rating", "avg_rating", "reward")
    for form in ("{word}_{side}", "{side}_{word}", "{side}-{word}")
)
RANK_PAIRS = (("rank_chosen", "rank_rejected"), ("chosen_rank", "rejected_rank"))
# Several answers to one prompt, with a score (higher is better) or a rank (lower is better) for each.
ANSWERS = ("completions", "responses", "generations", "answers", "candidates", "outputs")
SCORES = ("scores", "ratings", "rewards", "overall_scores")
RANKS = ("ranks", "rank", "ranking")
# The same inside of answers that are objects.
SAYS = ("response", "answer", "completion", "text", "generation", "output", "content")
SCORE = ("overall_score", "score", "rating", "reward")
RANK = ("rank",)
INDEX = ("", "Unnamed: 0", "__index_level_0__")  # what pandas calls the numbers of its rows


class Fields(dict[str, Any]):
    """The columns of one row; remembers which of them were read."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def peek(self, name: str) -> Any:
        """Return a column without counting it as read; None if there is none."""
        return super().get(name)

    def unread(self) -> list[str]:
        """Return the columns that hold something and were not read, without the numbers of the rows."""
        rest = [name for name in self if name not in self._read and not blank(self.peek(name))]
        return rest and [name for name in rest if not (name in INDEX and str(self.peek(name)).isdecimal())]


def blank(value: Any) -> bool:
    """Return whether a value says nothing: none, blanks alone, an empty list or object, not a number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, list | dict) and not value)


def numbered(columns: frozenset[str]) -> tuple[str, ...]:
    """Return the two columns whose names differ only in a number or letter at the end; or none.

    Of several such pairs the longest names are taken: others are the places or numbers of the texts.

    >>> numbered(frozenset({"question2", "qid1", "qid2", "question1"}))
    ('question1', 'question2')
    """
    for name in sorted(columns, key=lambda name: (-len(name), name)):
        for first, second in ENDINGS:
            other = name.removesuffix(first) + second
            if name.endswith(first) and len(name) > len(first) and other in columns:
                return name, other
    return ()


def truth(value: Any) -> bool | None:
    """Return what a column says that answers by yes or no, as true, 1 or "True"; None if it says else.

    >>> [truth(value) for value in (True, 0, "false", -1, "positive", 3)]
    [True, False, False, False, None, None]
    """
    word = str(value).strip().lower()
    if word in ("true", "yes", "1", "1.0"):
        return True
    number = as_number(value)
    return False if word in ("false", "no") or (number is not None and number <= 0) else None


def as_number(value: Any) -> float | None:
    """Return a number, or the number that a text writes; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if number != number else number
