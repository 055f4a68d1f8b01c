"""Minimise a loss of your own: label smoothing, or the focal loss, in place of the stage's cross-entropy.

    python examples/own_objective.py

A function gets the base and a batch, and returns a sum over all that is supervised, with their number. The
same functions work from a recipe: objective: examples/own_objective.py:focal
"""

import torch
from torch.nn import functional as F

import graft
from graft.objectives.lm import supervised

SMOOTHING = 0.1  # share of the target that all tokens have together
GAMMA = 2.0  # how much less a token counts that is already likely

ROWS = [
    {"prompt": f"name: {name} Otter", "completion": f"The {name} Otter is a {kind}."}
    for name in ("Silver", "Quiet", "Amber", "Northern")
    for kind in ("kettle", "lamp", "chair", "clock", "desk", "radio")
]


def token_logits(base: graft.Base, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, V) and the labels (N,) of the tokens that are learnt."""
    hidden, labels = supervised(base, batch)
    # The head in one piece: fine for a small vocabulary. `graft.objectives.lm` works in chunks instead.
    return base.logits(hidden[None])[0].float(), labels


def smoothed(base: graft.Base, batch):
    """Σ cross-entropy against targets of 1 − ε for the label and ε / V for every token."""
    logits, labels = token_logits(base, batch)
    loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="sum")
    return loss, {"tokens": len(labels), "correct": (logits.argmax(-1) == labels).sum()}


def focal(base: graft.Base, batch):
    """Σ −(1 − p)^γ log p. Lin et al. 2017, arXiv 1708.02002, eq. 4."""
    logits, labels = token_logits(base, batch)
    logp = -F.cross_entropy(logits, labels, reduction="none")
    loss = -((1 - logp.exp()) ** GAMMA * logp).sum()
    return loss, {"tokens": len(labels), "correct": (logits.argmax(-1) == labels).sum()}


def main(steps: int = 30) -> dict[str, float]:
    after = {}
    for objective in (None, smoothed, focal):
        name = objective.__name__ if objective else "usual"
        base = graft.load("seedling", dtype="fp32")
        adapter = base.attach(name, graft.LoRA(r=8))
        result = graft.train(
            base,
            adapter,
            ROWS,
            objective=objective,
            output=f"runs/own_objective/{name}",
            max_steps=steps,
            batch_size=8,
            lr=2e-3,
        )
        after[name] = result.scores["after"]["perplexity"]
        # Scores are those of the stage, whatever was minimised: they can be compared.
        print(f"{name:<9} loss of its own {result.loss:.3f}   perplexity {after[name]:.3f}")
    return after


if __name__ == "__main__":
    main()
