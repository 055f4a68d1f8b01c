"""Merge into a quantised base in one of three ways, each with its own loss.

    dequantised   Ŵ + D in 16 bits, with Ŵ the values that the codes stand for: what was trained, rounded once
    original      W₀ + D in 16 bits, with W₀ the weights before quantisation: nearer to the pretrained model,
                  but D was trained on Ŵ, and nobody has evaluated this sum
    packed        Ŵ + D packed again: small, but Ŵ lies on the levels already, so a change below half their
                  distance is rounded away; only what QA-LoRA learned fits into the minima of groups exactly

Dettmers et al. 2023 (2305.14314) keep the adapter next to the packed base, which loses nothing.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft.base.merging import in_minima, places
from graft.errors import GraftError, UsageError, one_of
from graft.models.load import load
from graft.quant import QuantLinear, packed_layers
from graft.shipping import prompts as texts
from graft.shipping.certificate import dtype_word
from graft.shipping.fidelity import answers, drift, perplexity, survival
from graft.shipping.prompts import Prompts
from graft.shipping.updates import stacked, unmerged

if TYPE_CHECKING:
    from graft.base.base import Base

INTO = ("dequantised", "original", "packed")


def check_into(base: "Base", into: str | None) -> None:
    """Raise UsageError for an unknown way to merge, or for any if the base is not quantised."""
    if into is None:
        return
    one_of("into", into, INTO)
    if default_into(base) is None:
        raise UsageError(
            f"into={into!r} for {base.name}, which is not quantised",
            "a quantised base",
            "leave into out: there is only one way",
        )


def default_into(base: "Base") -> str | None:
    """Return the default way to merge into this base; None if it is not quantised.

    It is the way that was used already, else the one nearest to what was trained.
    """
    if any(done.repacked for done in base.merged):
        return "packed"
    return "dequantised" if base.quant != "none" or any(done.dequantised for done in base.merged) else None


def minima_hold(base: "Base", names: Sequence[str]) -> bool:
    """Return whether all that these adapters change in packed layers fits into the minima of their groups."""
    packed = [
        (site, inserts)
        for name in names
        for site, inserts in places(base.adapters[name])
        if isinstance(site.module, QuantLinear)
    ]
    return bool(packed) and all(in_minima(site, inserts) is not None for site, inserts in packed)


def original_of(base: "Base", names: Sequence[str], folder: str | Path | None = None) -> "Base":
    """Return the base as it was before quantisation, with these adapters on it.

    folder: where it lies; by default what `base` was loaded from and quantised on the way.
    """
    where = folder or base.name
    original = load(where, "none", dtype_word(base), device=base.device)
    original.file_dtype = base.file_dtype
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
    base: "Base",
    adapters: Sequence[str],
    original: str | Path | None = None,
    prompts: Prompts | None = None,
) -> list[dict[str, Any]]:
    """Measure what each way to merge these adapters would cost, without writing; the base stays as it is.

    Returns one {"into", "bits", "kept", "noise", "logits", "perplexity"} per way, measured against the packed
    base with the adapters attached, or {"into", "trouble"} if the way is unavailable.
    prompts: to measure with; the fixed texts by default.
    """
    with unmerged(base):
        rows = prompts or texts.fixed(base, adapters)
        bare = answers(base, None, rows)
        with stacked(base, adapters[:-1]):
            adapted = answers(base, adapters[-1], rows)
        ways: list[dict[str, Any]] = []
        for into in INTO:
            try:
                kept, noise, merged = _tried(base, adapters, into, rows, original)
            except GraftError as error:
                ways.append({"into": into, "trouble": error.given})
                continue
            cost = {"kept": kept, "noise": noise, "logits": drift(bare, adapted, merged)}
            cost["perplexity"] = {
                "adapted": perplexity(base, rows, adapted),
                "merged": perplexity(base, rows, merged),
            }
            ways.append({"into": into, "bits": _bits(base, into), **cost})
    return ways


def _tried(
    base: "Base", adapters: Sequence[str], into: str, rows: Prompts, original: str | Path | None
) -> tuple[float, float, list[torch.Tensor]]:
    """Return (smallest share that is kept, largest noise, logits) of one way."""
    source = original_of(base, adapters, original) if into == "original" else base
    repack, reports = into == "packed", []
    for done, name in enumerate(adapters):
        with stacked(source, adapters[:done], repack=repack):
            reports.append(survival(source.adapters[name], repack=repack, dtype=base.file_dtype))
    with stacked(source, adapters, repack=repack):
        merged = answers(source, None, rows)
    return min(one["kept"] for one in reports), max(one["noise"] for one in reports), merged


def _bits(base: "Base", into: str) -> float:
    """Return the bits per weight of the layers in question."""
    if into != "packed":
        return float(torch.finfo(base.file_dtype).bits)
    return next(iter(packed_layers(base.model).values())).scheme.bits
