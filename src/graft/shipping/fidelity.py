"""Measure what a merge costs: how much of an adapter's change survives the number format it is written in.

    R = Q(W + D) − W        survived = ⟨R, D⟩ / ⟨D, D⟩        noise = ‖R − D‖ / ‖D‖

W is the weight as the base computes with it, D the whole change that the adapter makes to it, Q the rounding
to the base's dtype, or packing it again. Q(W) is W, so R = Q(W + D) − Q(W) is the change that is left, and
`survived` is the length of its projection on D in units of ‖D‖. It is 1 if the format holds the sum, 0 if
every step is smaller than half
the gap between two numbers: such a merge has no visible effect. Besides the weights, the logits of prompts
(`prompts`) say what a user will see, and their perplexity whether it is good.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from graft.base.adapter import Adapter
from graft.base.merging import folded, in_minima, places
from graft.core.site import Site
from graft.data.encode import IGNORED
from graft.errors import MergeError, listed
from graft.generate.generate import evaluating
from graft.quant import QuantLinear
from graft.quant.experts import PackedExperts
from graft.shipping.prompts import Prompts

if TYPE_CHECKING:
    from graft.base.base import Base

Answer = Callable[..., torch.Tensor]  # (ids (1, T), **what the family needs besides) -> logits (1, T, V)

KEPT = 0.5  # smallest share of the change that must survive
DRIFT = 0.5  # largest mean difference of the logits, as a share of what the adapter changes in them
REMEDY = "train longer, export to='peft' (--to), or accept it with lossy=True (--lossy)"
NOISE = 8  # differences below so many roundings of a logit say nothing


class Tally:
    """Sums over tensors that come one at a time: `add` each, then read the properties."""

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, float]] = {}
        self.count = 0  # numbers
        self.max, self._apart = 0.0, 0.0
        self._inner = self._own = self._missed = 0.0

    def add(self, name: str, before: torch.Tensor, ideal: torch.Tensor, written: torch.Tensor) -> None:
        """Add one tensor: W, W + D and what is there in the end. An untouched one is W twice."""
        self.count += ideal.numel()
        untouched = ideal is before and ideal.dtype == written.dtype and torch.equal(ideal, written)
        if untouched:  # spare the copies in fp32
            return
        before = before.float()
        ideal = ideal.float()
        written = written.float()
        missed, change = written - ideal, ideal - before
        self.max = max(self.max, float(missed.abs().max()))
        self._apart += float(missed.abs().sum())
        norm2 = float(change.square().sum())
        if norm2:
            inner, missed2 = float(((written - before) * change).sum()), float(missed.square().sum())
            self.tensors[name] = {
                "kept": inner / norm2,
                "noise": (missed2 / norm2) ** 0.5,
                "norm": norm2**0.5,
            }
            self._inner += inner
            self._own += norm2
            self._missed += missed2

    @property
    def kept(self) -> float:
        """Return the share of the change that survived; 1 if nothing was to change."""
        return self._inner / self._own if self._own else 1.0

    @property
    def noise(self) -> float:
        """Return the error in changed tensors, in units of the change."""
        return (self._missed / self._own) ** 0.5 if self._own else 0.0

    @property
    def mean(self) -> float:
        """Return the mean absolute difference from W + D, over all tensors."""
        return self._apart / self.count if self.count else 0.0


@torch.no_grad()
def survival(adapter: Adapter, *, repack: bool = False, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return {"kept", "noise", "tensors": {site: {"kept", "noise", "norm"}}} of merging `adapter`.

    Nothing is merged.  norm: ‖D‖; that of the minima if they hold it.  repack: other packed layers are packed
    again.  dtype: in which other weights are written; None: the base's. Methods that train in place merge
    exactly and do not appear.
    """
    tally = Tally()
    for site, inserts in places(adapter):
        if (shifted := in_minima(site, inserts)) is not None:
            before, ideal = site.module.minimum, shifted[0]
            tally.add(site.name, before, ideal, ideal.to(before.dtype))
        else:
            before, (ideal, _) = site.weight(), folded(site, inserts)
            tally.add(site.name, before, ideal, _stored(site, ideal, repack, dtype or before.dtype))
    return {"kept": tally.kept, "noise": tally.noise, "tensors": tally.tensors}


def _stored(site: Site, ideal: torch.Tensor, repack: bool, dtype: torch.dtype) -> torch.Tensor:
    held = site.held if site.kind == "parameter" else site.module
    if not repack or not isinstance(held, QuantLinear | PackedExperts):
        return ideal.to(dtype)
    weight = ideal.to(site.dtype)
    matrices = weight.split(site.out_features) if site.kind == "parameter" else [weight]
    packed = [QuantLinear.pack(matrix, held.scheme) for matrix in matrices]
    nan = torch.full_like(matrices[0], math.nan)
    return torch.cat([nan if layer is None else layer.weight for layer in packed])


def answers(base: "Base", name: str | None, prompts: Prompts) -> list[torch.Tensor]:
    """Return the base's logits for these prompts under `name`, or hidden states if it has no language head.

    Those of an adapter with a task head are of its classes.
    """
    return ask(base, prompts, lambda ids, **extra: base(ids, adapters=[name], **extra)[0])


@torch.no_grad()
def ask(base: "Base", prompts: Prompts, answer: Answer) -> list[torch.Tensor]:
    """Return the answers to these prompts at the places that are measured, in fp32."""
    logits = []
    with evaluating(base):
        for row in prompts.rows:
            inputs = {name: torch.tensor([ids], device=base.device) for name, ids in row.inputs.items()}
            one = answer(torch.tensor([row.ids], device=base.device), **inputs).float()
            logits.append(one if row.at is None or one.ndim != 3 else one[:, row.at])
    return logits


def perplexity(base: "Base", prompts: Prompts, logits: Sequence[torch.Tensor]) -> float | None:
    """Return exp of the mean NLL of every token that a prompt wants.

    Returns None if the logits do not predict a next token.
    """
    if base.family not in ("causal", "seq2seq") or prompts.headed or any(one.ndim != 3 for one in logits):
        return None
    nll, count = 0.0, 0
    for row, one in zip(prompts.rows, logits, strict=True):
        wanted = torch.tensor(row.wanted, device=one.device)
        if int(wanted.max()) >= one.shape[-1]:  # classes of tokens, asked with other texts
            return None
        nll += float(F.cross_entropy(one[0], wanted, reduction="sum", ignore_index=IGNORED))
        count += int((wanted != IGNORED).sum())
    return math.exp(min(nll / count, 700)) if count else None  # beyond that a float has no room


def drift(
    before: Sequence[torch.Tensor], adapted: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]
) -> dict[str, float | None]:
    """Return how far the merged answers are from the adapted ones.

    "max", "mean": absolute difference of the logits.  "size": mean absolute logit.  "effect": mean change
    that the adapter makes; None if it brings a task head, whose answers cannot be compared with the bare
    base's.
    """
    apart = torch.cat([(m - a).abs().flatten() for m, a in zip(merged, adapted, strict=True)])
    effect = [(a - b).abs().flatten() for a, b in zip(adapted, before, strict=True) if a.shape == b.shape]
    size = torch.cat([a.abs().flatten() for a in adapted])
    return {
        "max": float(apart.max()),
        "mean": float(apart.mean()),
        "effect": float(torch.cat(effect).mean()) if effect else None,
        "size": float(size.mean()),
    }


def judge_survival(name: str, report: dict[str, Any], dtype: torch.dtype, packed: str = "") -> None:
    """Raise MergeError if too little of the change is left.  packed: the scheme it was packed in again."""
    wild = [site for site, found in report["tensors"].items() if not math.isfinite(found["norm"])]
    if wild or not math.isfinite(report["kept"]):
        raise MergeError(
            f"{name!r} changes {wild[0] if wild else 'the model'} by numbers that are not finite",
            "an adapter whose products stay inside fp32",
            "merge an adapter whose training did not diverge",
        )
    if report["kept"] >= KEPT:
        return
    if not math.isfinite(report["kept"]):
        broken = [site for site, measured in report["tensors"].items() if not math.isfinite(measured["kept"])]
        raise MergeError(
            f"what {name!r} changes is too large for numbers of 32 bits ({listed(broken, 3)})",
            "finite values",
            "use an earlier checkpoint, or train again with a lower lr",
        )
    form = packed or str(dtype).removeprefix("torch.")
    worst = min(report["tensors"], key=lambda site: report["tensors"][site]["kept"])
    raise MergeError(
        f"only {report['kept']:.0%} of what {name!r} changes survives the rounding to {form} "
        f"(worst: {worst}, {report['tensors'][worst]['kept']:.0%})",
        f"at least {KEPT:.0%}",
        "merge into='dequantised' (--into), " + REMEDY
        if packed
        else "load the base with dtype='fp32', " + REMEDY,
    )


def judge_answers(name: str, logits: dict[str, Any], dtype: torch.dtype) -> None:
    """Raise MergeError if the merged model answers differently from the adapted one.  logits: see `drift`."""
    floor = NOISE * torch.finfo(dtype).eps * logits["size"]
    if not logits["mean"] <= max(DRIFT * logits["effect"], floor):  # so that a NaN is no answer either
        raise MergeError(
            f"merging {name!r} moves the logits of its prompts by {logits['mean']:.3g} on average, "
            f"where the adapter itself moves them by {logits['effect']:.3g}",
            f"at most {DRIFT:.0%} of that",
            REMEDY,
        )


def agreement(
    prompts: Prompts, adapted: Sequence[torch.Tensor], written: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Return how often a classifier tells the same class as what was trained, and how often the right one.

    Of every class its number of prompts and of right answers, before and after. Words count one by one.
    """
    wanted = torch.tensor([label for row in prompts.rows for label in row.wanted])
    told = [
        torch.cat([one[0].argmax(-1).reshape(-1).cpu() for one in answers]) for answers in (adapted, written)
    ]
    right = [answers == wanted for answers in told]
    by_class = {
        name: {"count": int(of.sum()), "adapted": int(right[0][of].sum()), "written": int(right[1][of].sum())}
        for i, name in enumerate(prompts.classes)
        if (of := wanted == i).any()
    }
    return {
        "count": len(wanted),
        "same": int((told[0] == told[1]).sum()),
        "adapted": int(right[0].sum()),
        "written": int(right[1].sum()),
        "by_class": by_class,
    }
