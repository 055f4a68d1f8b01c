"""Battles that nobody fought, for tests of votes."""

from graft.serve.studio.votes import Battle, Contestant


def battle(name, first="one", second="two", *, prompt="Why?", answers=("Yes.", "No."), flagged=False):
    """Return a battle of two models; a model's digest is made of its name."""
    sides = Contestant(first, f"d-{first}"), Contestant(second, f"d-{second}")
    return Battle(name, 1_000.0, prompt, sides, answers, {"max_tokens": 16}, flagged)
