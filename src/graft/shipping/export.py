"""Export a base with its adapters in a layout that other programs load.

A merged model becomes a Hugging Face folder (in 16 bits, or in 4 as GPTQ, AWQ, compressed-tensors or
bitsandbytes) or a GGUF file; an adapter alone becomes PEFT's folder, one for vLLM, or a GGUF file. Every
export takes the same steps:

    prepare → merge → write → read back → judge

Every folder gets a certificate.json, which says how far the result is from what was trained (`certificate`).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.base.choice import named
from graft.core.by_name import answered, require_base
from graft.core.site import shown
from graft.errors import MergeError, UsageError, notice, one_of
from graft.shipping import adapter as alone
from graft.shipping import classifier, provenance
from graft.shipping import prompts as texts
from graft.shipping.certificate import CERTIFICATE, certify
from graft.shipping.exported import Exported
from graft.shipping.fidelity import answers, drift, judge_answers, judge_survival, survival
from graft.shipping.layouts import LAYOUTS, Settings
from graft.shipping.merge_ways import check_into, choices, default_into, minima_hold, original_of
from graft.shipping.origin import Origin
from graft.shipping.prompts import Prompts
from graft.shipping.updates import stacked, unmerged, without_head
from graft.storage import output_folder, write_json

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

__all__ = ["CERTIFICATE", "LAYOUTS", "REPORT", "check_into", "choices", "export", "minima_hold"]

REPORT = "merge_report.json"


@answered
def export(
    base: "Base",
    folder: str | Path,
    to: str = "hf",
    *,
    type: str | None = None,
    adapter: "str | Adapter | None" = None,
    into: str | None = None,
    original: str | Path | None = None,
    force: bool = False,
    lossy: bool = False,
    origin: Origin | None = None,
) -> Path:
    """Write a folder that another program loads, and return it.

    to: a model for transformers ("hf"), for llama.cpp and Ollama ("gguf"), or in four bits for vLLM ("gptq",
    "awq", "compressed-tensors", "bnb"); an adapter alone for PEFT ("peft"), vLLM and SGLang ("vllm"), or
    llama.cpp ("gguf-lora").
    type: of a gguf's matrices: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1. By default q8_0; for a base
    packed in groups of up to 4 bits q4_1, which holds its codes exactly.
    adapter: which one, or its name; None: those that are merged (for a model), or the only one there is.
    into: how to merge into a quantised base, "dequantised", "original" or "packed" (see `merge_ways`). By
    default the first; packed where the layout holds the codes of the base and their minima take up the
    change.
    original: the folder of the weights before quantisation, if it is not base.name.
    force: replace what is in the folder.  lossy: write the model even if the merge loses what was learned.
    origin: the run that the adapter comes from (`graft.runs.origin`): its rows are measured with, and the
    model card tells of it. Without it eight fixed texts are measured with.

    A model is merged in fp32 and rounded once to the base's `file_dtype`; packed layers become 16-bit
    unless they stay packed. merge_report.json says what that cost, tensor by tensor. gptq, awq and
    compressed-tensors round anew, in groups (`four_bit`); bnb writes an nf4 or fp4 base as it is. The
    written folder is loaded again and measured; certificate.json holds the result. Afterwards the base is
    as it was.
    Raises MergeError if the merge loses what was learned (unless lossy), UsageError for settings that do not
    fit the base, MachineError for errors of the system (SpaceError if the disk is full).
    """
    require_base("graft.export", base)
    layout, folder = LAYOUTS[one_of("to", to, LAYOUTS)], Path(folder)
    check_into(base, into)
    chosen = _one_adapter(base, adapter) if layout.adapter_alone or adapter is not None else None
    settings = Settings(folder.name, chosen, type, into, origin)
    usual = default_into(base)  # asked before anything is unmerged
    prompts = origin.prompts_for(folder) if origin else None
    with output_folder(folder, force=force) as partial, unmerged(base) as merged:
        layout.check(base, settings)
        if layout.adapter_alone:
            _export_adapter(base, partial, to, settings, prompts)
        else:
            names = _adapters_to_merge(base, merged, chosen)
            settings = replace(
                settings, into=into or ("packed" if layout.holds(base, names, settings) else usual)
            )
            source = original_of(base, names, original) if settings.into == "original" else base
            _export_model(base, source, partial, to, names, settings, prompts, lossy=lossy)
    if to == "peft":
        base.adapters[str(chosen)].folder = folder.resolve()
    return Exported(folder)


def _one_adapter(base: "Base", given: "str | Adapter | None") -> str:
    """Return the name of the adapter that is meant: the given one, or the only one there is."""
    known = list(base.adapters)
    if given is None and len(known) == 1:
        return known[0]
    if given is None:
        count = "no adapter is attached" if not known else f"{len(known)} adapters are attached"
        remedy = f"pass adapter= one of {', '.join(known)}" if known else "attach one first"
        raise UsageError(count, "the name of one", remedy)
    return named(given, base.adapters)


def _adapters_to_merge(base: "Base", merged: list[str], adapter: str | None) -> list[str]:
    """Return what was merged, and the chosen adapter after it; the only adapter if that leaves none."""
    if adapter is not None and adapter not in merged:
        return [*merged, adapter]
    return merged or ([_one_adapter(base, None)] if base.adapters else [])


def _export_adapter(base: "Base", folder: Path, to: str, settings: Settings, prompts: Prompts | None) -> None:
    LAYOUTS[to].write(base, folder, settings)
    with LAYOUTS[to].read(folder, base) as reading:
        certify(base, folder, to, reading, [str(settings.adapter)], prompts=prompts)
    if to in ("peft", "vllm") and provenance.is_nameless(base):
        notice(alone.nameless(base))


def _export_model(
    base: "Base",
    source: "Base",
    folder: Path,
    to: str,
    names: Sequence[str],
    settings: Settings,
    prompts: Prompts | None,
    *,
    lossy: bool,
) -> None:
    """Merge the adapters into `source`, write it, read it again, and judge the result.

    base: what the adapters were trained on.  source: the same, or its weights before quantisation.
    """
    layout, repack = LAYOUTS[to], settings.into == "packed"
    headed = _headed(source, names, to)
    if prompts and prompts.headed != bool(headed):  # rows of another task
        prompts = None
    with contextlib.ExitStack() as stack:
        reports = [_merge(source, name, stack, prompts, repack=repack, lossy=lossy) for name in names]
        unpacked = layout.write(source, folder, replace(settings, headed=headed))
        dequantised = sorted({*unpacked, *(layer for done in source.merged for layer in done.dequantised)})
    facts = {
        "base": provenance.public_name(source),
        "dtype": str(source.file_dtype).removeprefix("torch."),
        "into": settings.into,
        "packed": source.quant if repack else "",
        "dequantised_layers": len(dequantised),
        "note": "; ".join(_notes(source, names, to, dequantised)),
        "adapters": reports,
    }
    write_json(folder / REPORT, facts)
    notes = {"into": settings.into} | ({"rounded": True} if layout.rounds else {})
    with layout.read(folder, source) as reading:
        if headed:
            asked = prompts or texts.fixed(base, names)
            classifier.require_same_together(base, headed, reading, asked)
        certificate = certify(source, folder, to, reading, names, trained=base, notes=notes, prompts=prompts)
    if names and not lossy and not headed:
        judge_answers(" + ".join(names), certificate["logits"], base.file_dtype)


def _headed(base: "Base", names: Sequence[str], to: str) -> str | None:
    """Return the adapter whose task head goes along: the last one. Raises MergeError for any other."""
    headed = [name for name in names if base.adapters[name].head is not None]
    if not headed:
        return None
    if headed != [names[-1]]:
        raise MergeError(
            f"{' and '.join(headed)} have task heads",
            "one, of the adapter that is merged last",
            "export one adapter",
        )
    classifier.check(base, headed[0], to)
    return headed[0]


def _merge(
    base: "Base",
    name: str,
    stack: contextlib.ExitStack,
    prompts: Prompts | None,
    *,
    repack: bool,
    lossy: bool,
) -> dict[str, Any]:
    """Merge one adapter until the stack closes; return the cost. Raises MergeError if it is too high.

    Of an adapter with a task head the rest is merged: its answers are compared once its classes can be read.
    """
    report = survival(base.adapters[name], repack=repack, dtype=base.file_dtype)
    if base.adapters[name].head is not None:
        body = stack.enter_context(without_head(base, name))
        stack.enter_context(stacked(base, [] if body is None else [body], repack=repack))
        report |= {"adapter": name, "untied": bool(body) and base.merged[-1].untied, "logits": None}
    else:
        rows = prompts or texts.fixed(base, [name])
        before, adapted = answers(base, None, rows), answers(base, name, rows)
        stack.enter_context(stacked(base, [name], repack=repack))
        merged = answers(base, None, rows)
        report |= {
            "adapter": name,
            "untied": base.merged[-1].untied,
            "logits": drift(before, adapted, merged),
        }
    if not lossy:
        judge_survival(name, report, base.file_dtype, base.quant if repack else "")
        if report["logits"] is not None:
            judge_answers(name, report["logits"], base.file_dtype)
    return report


def _notes(base: "Base", names: Sequence[str], to: str, dequantised: Sequence[str]) -> list[str]:
    """Return what a reader of the report might not expect."""
    notes = [
        f"{name} was trained on {_weights(base.adapters[name].trained_on)} weights and merged into "
        f"{_weights(base.quant)} ones"
        for name in names
        if base.adapters[name].trained_on not in ("", base.quant)
    ]
    if dequantised:
        layers = f"{len(dequantised)} packed layers were written from their dequantised values"
        notes.append(f"{layers}: {shown(dequantised)}")
    if LAYOUTS[to].rounds:
        notes.append(f"{to} has whole zero points: every packed layer was rounded anew")
        if minima_hold(base, names):
            notes.append(
                "so was what the minima of the groups would have held exactly "
                "(to='hf', into='packed'; to='gguf')"
            )
    return notes


def _weights(quant: str) -> str:
    return "unpacked" if quant == "none" else quant
