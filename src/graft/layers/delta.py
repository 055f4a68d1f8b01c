"""Sparse deltas: a few weights of a projection get a trained difference. They are chosen early in training.

    y = (W₀ + M ⊙ D) x + b₀        M: k ones where |∂L/∂W ⊙ W₀| of one step is largest

Only the k entries of D under M are kept, so optimizer states and files are as small. Until M is chosen, D is
0.
"""

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert
from graft.core.site import Site
from graft.errors import AdapterError

REST, WATCH, TRAIN = range(3)  # phases; kept as a tensor, so that a resumed run continues in the same one


class Delta(Insert):
    """(M ⊙ D) x added to one projection.

    D (k,) lies at `index` of the flat matrix.  density: k over the number of its weights.
    """

    index: torch.Tensor
    phase: torch.Tensor

    def __init__(self, site: Site, density: float) -> None:
        super().__init__()
        self.site, self.shape = site, (site.out_features, site.in_features)
        count = max(1, round(density * site.out_features * site.in_features))
        self.D = nn.Parameter(torch.zeros(count))
        self.register_buffer("index", torch.arange(count, dtype=torch.int32))
        self.register_buffer("phase", torch.tensor(REST))
        self._watched: torch.Tensor | None = None  # zeros added to the whole weight: they get its gradient

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        delta = self.matrix()
        if self.training and self.phase == WATCH:
            if self._watched is None:
                self._watched = torch.zeros_like(delta, requires_grad=True)
            delta = delta + self._watched
        return y + F.linear(x, delta.to(x.dtype)).to(y.dtype)

    def matrix(self) -> torch.Tensor:
        """Return M ⊙ D (out, in)."""
        flat = torch.zeros(self.shape, device=self.D.device).flatten()
        return flat.scatter(0, self.index.long(), self.D * (self.phase == TRAIN)).view(self.shape)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        last = self.shape[0] * self.shape[1] - 1
        if not ((tensors["index"] >= 0) & (tensors["index"] <= last)).all():
            raise AdapterError(
                f"an index outside {self.site.name}", f"0 to {last}", "this file is damaged: do not use it"
            )
        if tensors["phase"] not in (REST, WATCH, TRAIN):
            raise AdapterError(
                f"phase {tensors['phase'].item()} at {self.site.name}",
                f"{REST} to {TRAIN}",
                "do not use this file",
            )
        super().load(tensors)

    def watch(self) -> None:
        """Record the gradient of the whole weight in the next step, unless M has been chosen already."""
        if self.phase == REST:
            self.phase.fill_(WATCH)

    @torch.no_grad()
    def choose(self) -> None:
        """Choose M by the gradient that was recorded."""
        if self._watched is not None and self._watched.grad is not None:
            score = (self._watched.grad * self.site.weight()).abs().flatten()
            self.index.copy_(score.topk(len(self.D)).indices.sort().values)
            self.phase.fill_(TRAIN)
            self._watched = None
