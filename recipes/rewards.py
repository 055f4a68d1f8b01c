"""Rewards for the recipes of stages whose model writes its own answers: name one as recipes/rewards.py:NAME.

A reward gets lists with an entry for each answer: prompts, completions, and every other column of the rows.
It returns as many numbers; None where it has nothing to say. Trainers of TRL take the same functions.
"""


def short(completions, **columns):
    """Return 1 for an answer of at most 25 words, and less the longer it is."""
    return [25 / max(25, len(text.split())) for text in completions]


def price_last(completions, price, **columns):
    """Return 1 for an answer whose last sentence names the price, which is a column of the rows; else 0."""
    last = [text.strip(" .\n").rpartition(". ")[2] for text in completions]
    return [float(value in sentence) for value, sentence in zip(price, last, strict=True)]
