"""What a merge costs: how much of an adapter's change survives the rounding to the base's number format.

    W' = round(W + D)        R = W' − W        kept = ⟨R, D⟩ / ⟨D, D⟩        noise = ‖R − D‖ / ‖D‖

kept is 1 where the format holds the sum, 0 where every step is smaller than half the gap between two numbers: such a
merge has no visible effect. Beside the weights, the logits of fixed prompts before and after say what a user will see.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from graft.adapter import Adapter
from graft.errors import MergeError
from graft.generation import evaluating
from graft.insert import Insert
from graft.merging import in_minima
from graft.site import Site

if TYPE_CHECKING:
    from graft.base import Base

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was",
    "Question: what is it?\nAnswer:",
)
KEPT = 0.5  # smallest share of the change that must survive
DRIFT = 0.5  # largest mean difference of the logits, as a share of what the adapter changes in them
NOISE = 8  # differences below so many roundings of a logit say nothing


def survival(adapter: Adapter, packed: bool = False) -> dict[str, Any]:
    """{"kept", "noise", "tensors": {site: {"kept", "noise", "norm"}}} of merging `adapter`, before it is merged.

    norm: ‖D‖. Methods that train in place merge exactly and do not appear.  packed: layers stay packed where they can.
    """
    tensors: dict[str, dict[str, float]] = {}
    inner = own = lost = 0.0
    with torch.no_grad():
        for site, inserts in _seats(adapter):
            before, merged, dtype = _folded(site, inserts, packed)
            change = merged - before
            written = merged.to(dtype).float() - before
            aligned, norm2 = float((written * change).sum()), float(change.square().sum())
            missed = float((written - change).square().sum())
            if norm2:
                tensors[site.name] = {"kept": aligned / norm2, "noise": (missed / norm2) ** 0.5, "norm": norm2**0.5}
            inner, own, lost = inner + aligned, own + norm2, lost + missed
    return {"kept": inner / own if own else 1.0, "noise": (lost / own) ** 0.5 if own else 0.0, "tensors": tensors}


def answers(base: "Base", name: str | None) -> list[torch.Tensor]:
    """What the base says to the fixed prompts under `name`: logits, or hidden states without a language head."""
    tokenizer = base.tokenizer
    rows = [tokenizer(text)["input_ids"] for text in PROBES] if tokenizer is not None else [list(range(4, 12))]
    found = []
    with torch.no_grad(), evaluating(base):
        for ids in (torch.tensor([row], device=base.device) for row in rows):
            extra = {"decoder_input_ids": ids[:, :4]} if base.family == "seq2seq" else {}
            found.append(base(ids, adapters=[name], **extra)[0].float())
    return found


def drift(
    before: Sequence[torch.Tensor], adapted: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]
) -> dict[str, float]:
    """{"max", "mean"} absolute difference of merged and adapted logits; "effect": mean change that the adapter makes;
    "size": mean absolute logit."""
    apart = torch.cat([(m - a).abs().flatten() for m, a in zip(merged, adapted, strict=True)])
    effect = torch.cat([(a - b).abs().flatten() for a, b in zip(adapted, before, strict=True)])
    size = torch.cat([a.abs().flatten() for a in adapted])
    return {
        "max": float(apart.max()),
        "mean": float(apart.mean()),
        "effect": float(effect.mean()),
        "size": float(size.mean()),
    }


def judge(name: str, report: dict[str, Any], dtype: torch.dtype) -> None:
    """Raise MergeError where the merged model is not the adapted one."""
    remedy = "load the base with dtype='fp32', train longer, export to='peft', or accept it with lossy=True"
    kept, logits = report["kept"], report["logits"]
    if kept < KEPT:
        worst = min(report["tensors"], key=lambda site: report["tensors"][site]["kept"])
        raise MergeError(
            f"only {kept:.0%} of what {name!r} changes survives the rounding to {str(dtype).removeprefix('torch.')} "
            f"(worst: {worst}, {report['tensors'][worst]['kept']:.0%})",
            f"at least {KEPT:.0%}",
            remedy,
        )
    floor = NOISE * torch.finfo(dtype).eps * logits["size"]
    if logits["mean"] > max(DRIFT * logits["effect"], floor):
        raise MergeError(
            f"merging {name!r} moves the logits of fixed prompts by {logits['mean']:.3g} on average, "
            f"where the adapter itself moves them by {logits['effect']:.3g}",
            f"at most {DRIFT:.0%} of that",
            remedy,
        )


def _folded(site: Site, inserts: list[Insert], packed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """What is written before and after, in fp32, and its dtype: the weight, or a minimum per group of it."""
    taken = in_minima(site, inserts) if packed and hasattr(site.module, "minimum") else None
    if taken is not None:
        return site.module.minimum.float(), taken[0].float(), site.module.minimum.dtype
    weight, bias = site.weight(), site.bias()
    merged, bias = weight.float(), None if bias is None else bias.float()
    for insert in inserts:
        merged, bias = insert.merge(merged, bias)
    return weight.float(), merged, weight.dtype


def _seats(adapter: Adapter) -> list[tuple[Site, list[Insert]]]:
    """Sites whose weight changes, each with its inserts in order."""
    grouped: dict[str, tuple[Site, list[Insert]]] = {}
    for site, insert in adapter.inserts:
        if site.kind not in ("module", "final"):
            grouped.setdefault(site.name, (site, []))[1].append(insert)
    return list(grouped.values())
