"""Merging into a quantised base: three choices, each with its own loss.

    dequantised   Ŵ + D in 16 bits, with Ŵ the values that the codes stand for: what was trained, rounded once
    original      W₀ + D in 16 bits, with W₀ the weights before quantisation: nearer to the pretrained model, but D was
                  trained beside Ŵ, and nobody has evaluated this sum
    packed        Ŵ + D packed again: small, but Ŵ lies on the levels already, so a change below half their distance is
                  rounded away; but the minima of groups take up what QA-LoRA learnt, and nothing is lost

Dettmers et al. 2023 (2305.14314) keep the adapter beside the packed base, which loses nothing.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft.base.merging import in_minima, places
from graft.errors import GraftError, UsageError, nearest
from graft.models.load import load
from graft.quant import QuantLinear, is_packed
from graft.shipping import prompts
from graft.shipping.certificate import described, stacked, unmerged
from graft.shipping.fidelity import answers, drift, perplexity, survival

if TYPE_CHECKING:
    from graft.base.base import Base

INTO = ("dequantised", "original", "packed")


def check_into(base: "Base", into: str | None) -> None:
    """Raise UsageError for a choice that is none, or that a base in 16 or 32 bits does not have."""
    if into is not None and into not in INTO:
        near = nearest(into, INTO, 1)[0]
        raise UsageError(f"into={into!r}", f"one of {', '.join(INTO)}", f"did you mean {near!r}?")
    if into is not None and usual_into(base) is None:
        raise UsageError(
            f"into={into!r} for {base.name}", "a quantised base", "leave into out: there is one way"
        )


def usual_into(base: "Base") -> str | None:
    """The way into this base where none is chosen: what is merged already, or nearest to what was trained; None where
    it is not quantised."""
    if any(done.repacked for done in base.merged):
        return "packed"
    return "dequantised" if base.quant != "none" or any(done.dequantised for done in base.merged) else None


def fits(base: "Base", names: Sequence[str]) -> bool:
    """Whether the minima of a base packed in groups take up all that these adapters change in packed layers."""
    packed = [
        (site, inserts)
        for name in names
        for site, inserts in places(base.adapters[name])
        if isinstance(site.module, QuantLinear)
    ]
    return bool(packed) and all(in_minima(site, inserts) is not None for site, inserts in packed)


def original_of(base: "Base", names: Sequence[str], folder: str | Path | None = None) -> "Base":
    """The base before it was quantised, with these adapters on it.

    folder: where it lies; by default what `base` was loaded from, quantised on the way.
    """
    where = folder or base.name
    original = load(where, "none", described(base)["dtype"], device=base.device)
    as_stored = folder is None and getattr(getattr(base.model, "hf_quantizer", None), "pre_quantized", False)
    if as_stored or original.quant != "none":
        raise UsageError(
            f"{where} is quantised itself",
            "the weights before quantisation",
            "name their folder with original= (--original), or merge into='dequantised'",
        )
    for name in names:
        adapter = base.adapters[name]
        lies = adapter.folder
        with tempfile.TemporaryDirectory() as there:
            original.load_adapter(adapter.save(there), name)
        adapter.folder = original.adapters[name].folder = lies
    return original


def choices(
    base: "Base", adapters: Sequence[str], original: str | Path | None = None
) -> list[dict[str, Any]]:
    """What each way to merge these adapters would cost, measured without writing anything; the base stays as it is.

    One {"into", "bits", "kept", "noise", "logits", "perplexity"} per choice, against the packed base with the adapters
    attached, or {"into", "trouble"} where it cannot be had.
    """
    with unmerged(base):
        rows = prompts.rows(base, adapters)
        bare = answers(base, None, rows)
        with stacked(base, adapters[:-1]):
            adapted = answers(base, adapters[-1], rows)
        found = []
        for into in INTO:
            try:
                kept, noise, merged = _tried(base, adapters, into, rows, original)
            except GraftError as error:
                found.append({"into": into, "trouble": error.given})
                continue
            cost = {"kept": kept, "noise": noise, "logits": drift(bare, adapted, merged)}
            cost["perplexity"] = {
                "adapted": perplexity(base, rows, adapted),
                "merged": perplexity(base, rows, merged),
            }
            found.append({"into": into, "bits": _bits(base, into), **cost})
    return found


def _tried(
    base: "Base", adapters: Sequence[str], into: str, rows: list[list[int]], original: str | Path | None
) -> tuple[float, float, list[torch.Tensor]]:
    """(smallest share that is kept, largest noise, logits) of one way."""
    source = original_of(base, adapters, original) if into == "original" else base
    repack, reports = into == "packed", []
    for done, name in enumerate(adapters):
        with stacked(source, adapters[:done], repack=repack):
            reports.append(survival(source.adapters[name], repack=repack))
    with stacked(source, adapters, repack=repack):
        merged = answers(source, None, rows)
    return min(one["kept"] for one in reports), max(one["noise"] for one in reports), merged


def _bits(base: "Base", into: str) -> float:
    """Bits per weight of the layers in question."""
    schemes = [module.scheme for module in base.model.modules() if is_packed(module)]
    return float(schemes[0].bits) if into == "packed" else float(torch.finfo(base.dtype).bits)
