"""From votes to rows that a preference run learns from, and a count of every vote that becomes none.

votes = used + Σ left out by reason            (a vote is never lost without a word)

    objective dpo    {prompt, chosen, rejected}       of votes for one of two answers
    objective kto    {prompt, completion, label}      of these both answers, and of "both bad" two bad ones

Votes on one prompt and one pair of models are taken together: where the larger side has less than a share of
them, they conflict and none is used; else those of the smaller side are left out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.serve.studio.votes import Vote

OBJECTIVES = ("dpo", "kto")
REASONS = {
    "undone": "taken back",
    "flagged": "an answer names a model, so the vote was not blind",
    "tie": "a tie prefers no answer",
    "bad": "both answers are bad, which makes no pair",
    "conflicting": "votes on this prompt and these models do not agree",
    "outvoted": "most votes on this prompt and these models say otherwise",
    "same": "both answers are the same",
    "empty": "an answer is empty",
    "twice": "the same prompt and answers again",
    "other form": "asked as a text where most are conversations, or the other way round",
}


@dataclass(frozen=True)
class Learnt:
    """A row of a file, and the votes that it stands for.

    row: as it is written.  asked: the prompt as one text.  votes: the first of them gave the answers.
    """

    row: dict[str, Any]
    asked: str
    votes: tuple[Vote, ...]


@dataclass
class Selection:
    """What votes become.

    train, held: rows to learn from, and those of prompts that are held out.  used: votes that made a row.
    left_out: votes by reason, of REASONS.
    """

    train: list[Learnt] = field(default_factory=list)
    held: list[Learnt] = field(default_factory=list)
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def select(
    votes: Sequence[Vote], *, objective: str = "dpo", majority: float = 0.6, held_out: float = 0.1
) -> Selection:
    """Return what votes become.

    objective: one of OBJECTIVES.  majority: the share, above ½, that the larger side needs.
    held_out: the share of prompts that is held out, by a hash of each, so that the same stay so.
    """
    found = Selection()
    usable = _agreeing(_blind(votes, objective, found), majority, found)
    usable = _of_one_form(usable, found)
    rows: dict[str, Learnt] = {}
    for vote in usable:
        made = _rows(vote, objective)
        fresh = [key for key in made if key not in rows]
        for key, row in made.items():
            known = rows.get(key)
            rows[key] = Learnt(row, vote.battle.asked, (*(known.votes if known else ()), vote))
        if fresh:
            found.used += 1
        else:
            found.left_out["twice"] += 1
    apart = _held_prompts(rows.values(), held_out)
    for learnt in rows.values():
        (found.held if learnt.asked in apart else found.train).append(learnt)
    return found


def _blind(votes: Sequence[Vote], objective: str, found: Selection) -> list[Vote]:
    """Return the votes that can make rows by themselves; the others are counted."""
    able = []
    for vote in votes:
        a, b = (answer.strip() for answer in vote.battle.answers)
        reason = (
            "undone" if vote.undone_at is not None
            else "flagged" if vote.battle.flagged
            else "tie" if vote.verdict == "tie"
            else "bad" if vote.verdict == "bad" and objective != "kto"
            else "empty" if not a or not b
            else "same" if a == b and vote.verdict != "bad"
            else ""
        )  # fmt: skip
        if reason:
            found.left_out[reason] += 1
        else:
            able.append(vote)
    return able


def _agreeing(votes: list[Vote], majority: float, found: Selection) -> list[Vote]:
    """Return the votes of clear majorities, in their order; "both bad" has no other side."""
    groups: dict[Any, list[Vote]] = {}
    for vote in votes:
        groups.setdefault((vote.battle.asked, frozenset(vote.battle.sides)), []).append(vote)
    kept: set[str] = set()
    for group in groups.values():
        sides = Counter(_winner(vote) for vote in group if vote.verdict in ("a", "b"))
        best, most = sides.most_common(1)[0] if sides else (None, 0)
        clear = most >= majority * sum(sides.values()) and list(sides.values()).count(most) == 1
        for vote in group:
            if vote.verdict == "bad" or (clear and _winner(vote) == best):
                kept.add(vote.battle.id)
            else:
                found.left_out["outvoted" if clear else "conflicting"] += 1
    return [vote for vote in votes if vote.battle.id in kept]


def _winner(vote: Vote) -> Any:
    return vote.battle.sides[vote.verdict == "b"]


def _of_one_form(votes: list[Vote], found: Selection) -> list[Vote]:
    """Return the votes whose prompts are of the commoner form: one file is read in one way."""
    texts = [isinstance(vote.battle.prompt, str) for vote in votes]
    most = sum(texts) * 2 >= len(texts)
    found.left_out["other form"] += sum(text is not most for text in texts)
    return [vote for vote, text in zip(votes, texts, strict=True) if text is most]


def _rows(vote: Vote, objective: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a vote by what makes them the same."""
    prompt = vote.battle.prompt
    said: list[Any] = list(vote.battle.answers)
    if not isinstance(prompt, str):
        said = [[{"role": "assistant", "content": answer}] for answer in said]
    good = [vote.verdict == "a", vote.verdict == "b"]
    if objective == "kto":
        rows = [
            {"prompt": prompt, "completion": one, "label": is_good}
            for one, is_good in zip(said, good, strict=True)
        ]
    else:
        chosen, rejected = said if vote.verdict == "a" else said[::-1]
        rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
    return {repr(row): row for row in rows}


def _held_prompts(rows: Any, share: float) -> set[str]:
    """Return the prompts that are held out: at least one, and never all; none for a share of 0."""
    prompts = sorted({one.asked for one in rows}, key=lambda text: hashlib.sha256(text.encode()).digest())
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1) if share and prompts else 0
    return set(prompts[:count])
