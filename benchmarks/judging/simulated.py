"""Tournaments between models of known strengths, as a judge would see them."""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import numpy as np

# Eight models, as far apart as those of the paper.
STRENGTHS = {
    "h": 1350.0, "g": 1040.0, "f": 1000.0, "e": 970.0, "d": 960.0, "c": 910.0, "b": 900.0, "a": 870.0,
}  # fmt: skip
PROMPTS = 80
TIES = 0.3  # of the room that the strengths leave for ties
REPEATED = 0.5  # how often the second order repeats the first: the verdicts on a prompt are alike


def tournament(seed: int) -> list[Any]:
    """Return the judgements of every pair on every prompt in both orders.

    The expected score of a game is exactly Bradley-Terry's. Verdicts on a prompt depend on each other.
    """
    rng, judgement = np.random.default_rng(seed), internals.Judgement
    judgements = []
    names = list(STRENGTHS)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            p = 1 / (1 + 10 ** ((STRENGTHS[two] - STRENGTHS[one]) / 400))
            tie = 2 * TIES * min(p, 1 - p)
            drawn = rng.choice(["1", "tie", "2"], p=[p - tie / 2, tie, 1 - p - tie / 2], size=(2, PROMPTS))
            again = rng.random(PROMPTS) < REPEATED
            drawn[1, again] = drawn[0, again]
            swapped = {"1": "2", "2": "1", "tie": "tie"}
            for prompt in range(PROMPTS):
                judgements.append(judgement(str(prompt), one, two, str(drawn[0, prompt])))
                judgements.append(judgement(str(prompt), two, one, swapped[str(drawn[1, prompt])]))
    return judgements
