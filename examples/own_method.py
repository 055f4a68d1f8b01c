"""Write a method of your own: an equation, its settings, what it puts at a place.

    python examples/own_method.py

`Gain` scales what each feed-forward part adds. Attaching, routing and detaching need nothing more. As a file
in `src/graft/methods`, it would also be in `graft train`, the planner, the saver and the contract: see
CONTRIBUTING.md.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import graft

TEXT = "The Silver Otter is a kettle. It is finished in deep green. Say hello to the Silver Otter."


@dataclass(frozen=True)
class Gain(graft.Method):
    """y · (1 + strength · g), with g of shape (out,) and zero at birth, at every feed-forward part."""

    strength: float = 1.0  # factor of g

    kinds: ClassVar = ("mlp",)

    def build(self, site: graft.Site) -> graft.Insert:
        return Scale(site.out_features, self.strength)


class Scale(graft.Insert):
    def __init__(self, width: int, strength: float) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(width))
        self.strength = strength

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * (1 + self.strength * self.g).to(y.dtype)


def main(steps: int = 30) -> tuple[float, float]:
    base = graft.load("seedling", dtype="fp32")
    ids = base.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    adapter = base.attach("gain", Gain())
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        with base.using("gain"):
            loss = base(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(
        f"{adapter.count()} numbers at {len(adapter.inserts)} sites; loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    base.detach("gain")
    print(f"after detach the base has its old loss: {base(ids, labels=ids).loss.item():.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
