"""AdapterFusion: frozen adapters of several tasks, and at each place an attention over what they add.

    z_n = Δ_n(u)        a_n = softmax_n((Q u + b_q)·(K z_n + b_k) / temperature)        o = V Σ_n a_n z_n
    L = CE + regularization · Σ ‖V − I‖²

o takes the place of one adapter's Δ. Q, K, V (d, d): Q and K are N(0, 0.02), V = I with 1e-6 off the
diagonal; 3d² + 2d numbers per place, 21.25 million on BERT-base. Without V it is the static variant. The file
holds the fused adapters too, so the folders they came from are not needed again.
Pfeiffer et al. 2020 (2005.00247).
Differs: K is applied to the query and V to the sum, once for all n, which gives the same result; V has no
weight decay, which would pull it to 0 instead of I; the temperature is constant and scores are not dropped
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from graft.base import adapter_files
from graft.base.adapter import Adapter
from graft.core.file_layout import FileLayout
from graft.core.method import Method, No
from graft.core.part import Part, Seats
from graft.core.registry import described
from graft.core.schema import Positive, Weight
from graft.core.site import Site
from graft.errors import AdapterError, UsageError
from graft.layers.bottleneck import Projection
from graft.layers.sublayers import Addition, Placed
from graft.recipe.methods import resolve_methods


class FusionFiles(FileLayout):
    """The settings of the fused adapters stand in place of their folders."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        return super().describe(method, part) | {"adapters": part.of(Fusion)[0][1].settings}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        if any(isinstance(entry, str) for entry in settings.get("adapters", ())):
            raise AdapterError(
                "a file of adapter fusion that names other folders",
                "the settings of the fused adapters",
                "save the adapter again",
            )
        return super().understand(cls, settings)


@dataclass(frozen=True, kw_only=True)
class AdapterFusion(Method):
    # folders of trained adapters; {name: pfeiffer, ...} stands for one that is not trained
    adapters: tuple[Any, ...] = (
        {"name": "pfeiffer", "init_weights": "houlsby"},
        {"name": "pfeiffer", "init_weights": "houlsby"},
    )
    value: bool = True  # with V; without it is the static variant
    regularization: Weight = 0.01  # weight of ‖V − I‖²
    temperature: Positive = 1.0  # of the softmax over the adapters

    kinds: ClassVar = ("attention", "cross", "mlp", "norm", "block")
    files: ClassVar = FusionFiles("GRAFT_ADAPTER_FUSION")
    mergeable: ClassVar = No("which adapter applies depends on the input")
    newborn: ClassVar = No("the adapters that it fuses act from the first step on")

    def __post_init__(self) -> None:
        if not self.adapters:
            raise UsageError(
                "adapters=()", "at least one adapter", "name the folders of the adapters to fuse"
            )

    def assemble(self, sites: Sequence[Site]) -> Seats:
        members = [_member(entry, sites) for entry in self.adapters]
        settings = [{"name": method.name(), **method.config()} for method, _ in members]
        places: dict[tuple[str, str], tuple[Site, list[Addition]]] = {}
        for _, seats in members:
            for site, insert in seats:
                places.setdefault((site.name, site.kind), (site, []))[1].append(insert)
        return [(site, Fusion(site, inserts, settings, self)) for site, inserts in places.values()]

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        values = [fusion.V for _, fusion in part.of(Fusion) if fusion.V is not None]
        groups = super().param_groups(part, lr)
        rest = [g | {"params": [p for p in g["params"] if all(p is not V for V in values)]} for g in groups]
        return rest + ([{"params": values, "lr": lr, "weight_decay": 0.0}] if values else [])

    def extra_loss(self, part: Part, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        values = [fusion.V for _, fusion in part.of(Fusion) if fusion.V is not None]
        if not values:
            return None
        away = [(V - torch.eye(len(V), device=V.device)).square().sum() for V in values]
        return self.regularization * torch.stack(away).sum()

    def notice(self, part: Part) -> str | None:
        untrained = sum(not isinstance(entry, str) for entry in self.adapters)
        return f"{untrained} of the {len(self.adapters)} fused adapters are untrained" if untrained else None


class Fusion(Addition):
    """o at one place.  members: frozen; settings: those of all fused adapters."""

    def __init__(
        self, place: Site, members: Sequence[Addition], settings: list[dict[str, Any]], config: AdapterFusion
    ) -> None:
        d, parallel = members[0].d, members[0].parallel
        if any(member.parallel != parallel for member in members):
            raise UsageError(
                f"adapters parallel to and after {place.name}",
                "all parallel to it, or all after it",
                "fuse adapters of one kind",
            )
        super().__init__(place, d, parallel=parallel)
        self.settings, self.temperature = settings, config.temperature
        self.members = nn.ModuleList(members).requires_grad_(False)
        self.query, self.key = Projection(d, d, "bert"), Projection(d, d, "bert")
        self.V = nn.Parameter(torch.full((d, d), 1e-6).fill_diagonal_(1.0)) if config.value else None

    def train(self, mode: bool = True) -> "Fusion":
        """Switch dropout on or off; the fused adapters stay in evaluation mode."""
        super().train(mode)
        self.members.eval()
        return self

    def delta(self, u: torch.Tensor) -> torch.Tensor:
        members: Any = self.members
        z = torch.stack([member.delta(u) for member in members], dim=-2)  # (..., N, d)
        q = self.query(u)
        K = self.key.weight.to(u.dtype)
        b = self.key.bias.to(u.dtype)
        scores = (z @ (q @ K)[..., None])[..., 0] + (q @ b)[..., None]
        a = (scores / self.temperature).softmax(-1, dtype=torch.float32).to(u.dtype)
        mixed = (a[..., None, :] @ z)[..., 0, :]
        return mixed if self.V is None else mixed @ self.V.to(u.dtype).T


def _member(entry: Any, sites: Sequence[Site]) -> tuple[Method, list[tuple[Site, Addition]]]:
    """Return a method to fuse and its inserts.

    entry: a folder, whose task head is left out; or settings of a newborn.
    """
    if isinstance(entry, str):
        methods, tensors, _ = adapter_files.read(Path(entry), sites)
    else:
        methods, tensors = [described(_checked(entry))], None
        if not isinstance(methods[0], Placed):
            raise _unfit(entry)
    seats = [method.assemble(sites) for method in methods]
    if tensors is not None:
        Adapter(entry, methods, seats, dict).load_file_state(tensors)
    members = [(method, pairs) for method, pairs in zip(methods, seats, strict=True) if not method.is_head()]
    additions = [(site, insert) for site, insert in members[0][1] if isinstance(insert, Addition)]
    if len(members) != 1 or len(additions) != len(members[0][1]):
        raise _unfit(entry)
    return members[0][0], additions


def _unfit(entry: Any) -> AdapterError:
    return AdapterError(
        f"{entry} cannot be fused",
        "an adapter of one method that adds modules at sublayers and trains no norms",
        "train it as pfeiffer, parallel, or houlsby with train_norms=false",
    )


def _checked(entry: Any) -> dict[str, Any]:
    """Return the complete settings of a method. Raises UsageError for wrong ones."""
    raw: dict[str, Any] = {"method": entry}
    problems = resolve_methods(raw, [])
    if problems:
        raise UsageError(
            "adapters: " + "; ".join(f"{key} {text}" for key, text in problems.items()),
            "folders of trained adapters, or settings such as {name: pfeiffer, m: 64}",
            "correct this entry",
        )
    return raw["method"]
