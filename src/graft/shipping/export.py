"""Export: the result in the layout that other programs load: a merged model as a Hugging Face folder (in 16 bits, or in
4 as GPTQ, AWQ, compressed-tensors or bitsandbytes) or a GGUF file, an adapter as PEFT's folder or a GGUF file.

Every folder gets a certificate.json, which says how far it is from what was trained (`certificate`).
"""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.core.site import shown
from graft.errors import AdapterError, MergeError, UsageError, nearest
from graft.formats.int4 import FORMATS
from graft.shipping import four_bit, gguf, instructions, prompts
from graft.shipping.adapter import ADAPTERS
from graft.shipping.certificate import CERTIFICATE, certify, said, stacked, unmerged
from graft.shipping.fidelity import answers, drift, judge_answers, judge_survival, survival
from graft.shipping.hf import replaced, write_model
from graft.shipping.merge_ways import check_into, choices, fits, original_of, usual_into
from graft.shipping.readback import READERS

if TYPE_CHECKING:
    from graft.base.base import Base

__all__ = ["CERTIFICATE", "LAYOUTS", "MODELS", "REPORT", "check_into", "choices", "export", "fits", "said"]

REPORT = "merge_report.json"


def _hf(base: "Base", folder: Path, name: str, type: str | None, packed: bool) -> list[str]:
    unpacked = write_model(base, folder, packed=packed)
    if base.family == "causal" and base.tokenizer is not None:
        instructions.write_model(base, folder, name)
    return unpacked


def _gguf(base: "Base", folder: Path, name: str, type: str | None, packed: bool) -> list[str]:
    unpacked, file = gguf.write_gguf(base, folder, type or gguf.usual_type(base))
    instructions.write_gguf(base, folder, file)
    return unpacked


def _bnb(base: "Base", folder: Path, name: str, type: str | None, packed: bool) -> list[str]:
    return four_bit.write_bnb(base, folder, name)


def _whole(base: "Base", folder: Path, name: str, type: str | None, packed: bool, *, to: str) -> list[str]:
    return four_bit.write_whole(base, folder, name, to)


ROUNDED = tuple(FORMATS)  # whole zero points: nothing is held exactly
# (base with all merged, folder, its name in the end, type, whether packed layers stay so) -> layers that were unpacked
MODELS: dict[str, Callable[["Base", Path, str, str | None, bool], list[str]]] = {
    "hf": _hf,
    "gguf": _gguf,
    "bnb": _bnb,
    **{to: functools.partial(_whole, to=to) for to in ROUNDED},
}
LAYOUTS = (*MODELS, *ADAPTERS)


def export(
    base: "Base",
    folder: str | Path,
    to: str = "hf",
    *,
    type: str | None = None,
    adapter: str | None = None,
    into: str | None = None,
    original: str | Path | None = None,
    force: bool = False,
    lossy: bool = False,
) -> Path:
    """Write a folder that transformers ("hf"), llama.cpp and Ollama ("gguf", or "gguf-lora" for the adapter alone),
    vLLM in four bits ("gptq", "awq", "compressed-tensors", "bnb") or PEFT ("peft") loads, and return it.

    type: gguf: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1; by default q8_0, of a base packed in groups of up to 4
    bits q4_1, which holds its codes as they are. adapter: which one; None: what is merged (of a model), or the only
    one there is. force: replace an existing folder.
    A model: the adapter is merged in fp32 and rounded once to the base's dtype, packed layers become 16-bit unless
    they are packed in groups that take it up; what that cost, tensor by tensor, is in merge_report.json. Raises
    MergeError where the merge does not keep what the adapter learned, unless lossy.
    gptq, awq, compressed-tensors: rounded anew, in groups (`fourbit`). bnb: an nf4 or fp4 base as it is.
    into: of a quantised base, "dequantised", "original" or "packed", see `quantised`; by default the first, or packed
    where a gguf holds the codes of the base and their minima take up the change. original: the folder of its weights
    before quantisation, where base.name is not that.
    The folder is read again and measured; certificate.json holds the result. The base is afterwards as it was before.
    """
    if to not in LAYOUTS:
        raise UsageError(
            f"to={to!r}", f"one of {', '.join(LAYOUTS)}", f"did you mean {nearest(to, LAYOUTS, 1)[0]!r}?"
        )
    check_into(base, into)
    if to == "gguf":
        gguf.check(base, type or gguf.usual_type(base))  # before the work
    elif type is not None:
        raise UsageError(f"type={type!r} with to={to!r}", "a type of to='gguf'", "leave type out")
    folder = Path(folder)
    if to in ADAPTERS:
        return ADAPTERS[to](base, folder, _one(base, adapter), force=force)
    adapter = None if adapter is None else _one(base, adapter)
    usual = usual_into(base)
    with replaced(folder, force=force) as partial, unmerged(base) as merged:
        names = merged if adapter is None or adapter in merged else [*merged, adapter]
        if not names and base.adapters:
            names = [_one(base, None)]
        into = into or ("packed" if _stays(base, names, to, type) else usual)
        if to == "bnb":
            four_bit.check_bnb(base, into)
        source = original_of(base, names, original) if into == "original" else base
        write = functools.partial(MODELS[to], source, partial, folder.name, type, into == "packed")
        _merged(source, partial, names, to, into, lossy, write)
        notes = {"into": into, **({"rounded": True} if to in ROUNDED else {})}
        with READERS[to](partial, source) as reading:
            facts = certify(source, partial, to, reading, names, trained=base, notes=notes)
        if names and not lossy:
            judge_answers(" + ".join(names), facts["logits"], base.dtype)
    return folder


def _stays(base: "Base", names: Sequence[str], to: str, type: str | None) -> bool:
    """Whether the layout holds the packed layers as they are, and they take up what these adapters change."""
    return to == "bnb" or (to == "gguf" and gguf.holds(base, type) and (not names or fits(base, names)))


def _merged(
    base: "Base",
    folder: Path,
    names: Sequence[str],
    to: str,
    into: str | None,
    lossy: bool,
    write: Callable[[], list[str]],
) -> None:
    """Write the model with these adapters merged, and what that cost; the base is then as before."""
    repack = into == "packed"
    with contextlib.ExitStack() as stack:
        reports = [_merge(base, name, lossy, repack, stack) for name in names]
        dequantised = sorted({*write(), *(layer for done in base.merged for layer in done.dequantised)})
    facts = {
        "base": base.name,
        "dtype": str(base.dtype).removeprefix("torch."),
        "into": into,
        "packed": base.quant if repack else "",
        "dequantised_layers": len(dequantised),
        "note": "; ".join(_notes(base, names, to, dequantised)),
        "adapters": reports,
    }
    (folder / REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _notes(base: "Base", names: Sequence[str], to: str, dequantised: Sequence[str]) -> list[str]:
    """What a reader of the report might not expect."""
    word = lambda quant: "unpacked" if quant == "none" else quant
    notes = [
        f"{name} was trained beside {word(base.adapters[name].trained_on)} weights "
        f"and merged into {word(base.quant)} ones"
        for name in names
        if base.adapters[name].trained_on not in ("", base.quant)
    ]
    if dequantised:
        count = len(dequantised)
        notes.append(
            f"{count} packed layers were written from their dequantised values: {shown(dequantised)}"
        )
    if to in ROUNDED:
        notes.append(f"{to} has whole zero points: every packed layer was rounded anew")
        exact = (
            "so was what the minima of the groups would have held exactly (to='hf', into='packed'; to='gguf')"
        )
        notes += [exact] if fits(base, names) else []
    return notes


def _merge(base: "Base", name: str, lossy: bool, repack: bool, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Merge one adapter until the stack closes, and say what it cost."""
    heads = [site.name for site, _ in base.adapters[name].inserts if site.kind == "final"]
    if heads:
        raise MergeError(
            f"{name!r} has a task head ({heads[0]}), which a plain {base.model.__class__.__name__} has no place for",
            "an adapter that changes weights only",
            "export it with to='peft'",
        )
    rows = prompts.rows(base, [name])
    before, adapted = answers(base, None, rows), answers(base, name, rows)
    report = survival(base.adapters[name], repack=repack)
    stack.enter_context(stacked(base, [name], repack=repack))
    untied = base.merged[-1].untied
    report |= {"adapter": name, "untied": untied, "logits": drift(before, adapted, answers(base, None, rows))}
    if not lossy:
        judge_survival(name, report, base.dtype, base.quant if repack else "")
        judge_answers(name, report["logits"], base.dtype)
    return report


def _one(base: "Base", name: str | None) -> str:
    """The adapter that was meant."""
    known = list(base.adapters)
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        given = "no adapter is attached" if not known else f"{len(known)} adapters are attached"
        raise UsageError(
            given,
            "the name of one",
            f"pass adapter= one of {', '.join(known)}" if known else "attach one first",
        )
    if name not in known:
        remedy = f"did you mean {nearest(name, known, 1)[0]!r}?" if known else "attach or load one first"
        raise AdapterError(
            f"no adapter {name!r} on this base", f"one of {', '.join(known) or 'none yet'}", remedy
        )
    return name
