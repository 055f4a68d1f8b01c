"""Votes between two answers, as arenas collect them: a is better, b is better, a tie, or both are bad.

    {"prompt", "answer_a", "answer_b", "vote"}
    {"conversation_a", "conversation_b", "winner"}                        LMSYS chatbot arena
    {"prompt", "response_a", "response_b", "winner_model_a", ...}         one column for each outcome

A vote for one of the two is a pair, and a good and a bad answer. A tie is neither: it does not tell whether
the answers are good. That both are bad, or both are good, is told of each alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from graft.data.columns import Fields, blank, truth
from graft.data.preferences import asked_and_answered, row_of
from graft.data.rows import BadRow, Row

SIDES = tuple(
    (f"{word}_a", f"{word}_b") for word in ("answer", "response", "completion", "output", "conversation")
)
VOTES = ("vote", "winner", "verdict", "preference", "choice")
OUTCOMES = {"a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
# What votes are called, without case and signs.
WORDS = {
    "a": ("a", "1", "model a", "answer a", "response a", "left"),
    "b": ("b", "2", "model b", "answer b", "response b", "right"),
    "tie": ("tie", "draw", "equal", "same"),
    "bad": ("bad", "both bad", "bothbad", "tie bothbad", "neither"),
    "good": ("good", "both good", "bothgood", "tie bothgood", "both"),
}
MEANING = {word: vote for vote, words in WORDS.items() for word in words}
VERDICTS = {"a": (True, False), "b": (False, True), "bad": (False, False), "good": (True, True)}


def is_vote(fields: Mapping[str, Any]) -> bool:
    """Return whether a row is a vote between two answers."""
    voted = any(name in fields for name in VOTES) or fields.keys() >= set(OUTCOMES.values())
    return voted and any(fields.keys() >= set(pair) for pair in SIDES)


def vote_rows(source: str, columns: Mapping[str, Any], to: str) -> list[Row]:
    """Return the rows that a vote becomes.

    to: "preference", one pair; "judged", two answers with a verdict; "sft", the better answer.
    Raises BadRow for a vote that tells nothing of this kind, and for one that cannot be read.
    """
    fields = Fields(columns)
    vote = _vote(fields)
    names = next(pair for pair in SIDES if fields.keys() >= set(pair))
    prompt, answers, unused = asked_and_answered(fields, [(name, fields[name]) for name in names])
    unused += tuple(f"column {name!r}" for name in fields.unread())
    if to == "judged" and vote in VERDICTS:
        verdicts = zip(answers, VERDICTS[vote], strict=True)
        return [row_of(source, to, (prompt, answer, good), fields, unused) for answer, good in verdicts]
    if vote not in ("a", "b"):
        detail = "neither answer is the better one"
        if to == "judged":
            detail = "it does not tell whether the answers are good"
        raise BadRow("tie" if vote == "tie" else f"both {vote}", detail, "nothing, if that is meant")
    if answers[0] == answers[1]:
        raise BadRow("identical answers", f"{names[0]!r} and {names[1]!r} are the same", "remove the row")
    ordered = answers if vote == "a" else answers[::-1]
    return [row_of(source, "ranking", (prompt, ordered, None), fields, unused)]


def _vote(fields: Fields) -> str:
    """Return a vote as one of `WORDS`."""
    name = next((name for name in VOTES if not blank(fields.peek(name))), None)
    if name is not None:
        word = re.sub("[^a-z0-9]+", " ", str(fields[name]).lower()).strip()
        if word in MEANING:
            return MEANING[word]
        raise BadRow("bad vote", f"{name!r} is {fields[name]!r:.40}", "write a, b, tie or bad")
    said = [vote for vote, column in OUTCOMES.items() if truth(fields.get(column))]
    if len(said) != 1:
        raise BadRow("bad vote", f"{len(said)} outcomes are true", "write a, b, tie or bad as the vote")
    return said[0]
