"""Export: the result in the layout that other programs load, a merged Hugging Face folder or an adapter of PEFT.

Every folder gets a certificate.json, which says how far it is from what was trained (`certificate`).
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import AdapterError, MergeError, UsageError, nearest
from graft.export import prompts
from graft.export.certificate import CERTIFICATE, certify, said, stacked, unmerged
from graft.export.faithful import answers, drift, judge_answers, judge_survival, survival
from graft.export.folder import replaced, write_model
from graft.export.quantised import check_into, choices, fits, original_of, usual_into
from graft.export.readings import READERS

if TYPE_CHECKING:
    from graft.base import Base

__all__ = ["CERTIFICATE", "LAYOUTS", "REPORT", "check_into", "choices", "export", "fits", "said"]

LAYOUTS = ("hf", "peft")
REPORT = "merge_report.json"


def export(
    base: "Base",
    folder: str | Path,
    to: str = "hf",
    *,
    adapter: str | None = None,
    into: str | None = None,
    original: str | Path | None = None,
    force: bool = False,
    lossy: bool = False,
) -> Path:
    """Write a folder that transformers ("hf") or PEFT ("peft") loads, and return it.

    adapter: which one; None: what is merged (hf), or the only one there is. force: replace an existing folder.
    hf: the adapter is merged in fp32 and rounded once to the base's dtype; what that cost, tensor by tensor, is in
    merge_report.json. Raises MergeError where the merge does not keep what the adapter learned, unless lossy.
    into: of a quantised base, "dequantised" (default), "original" or "packed", see `quantised`; original: the folder of
    its weights before quantisation, where base.name is not that.
    The folder is read again and measured; certificate.json holds the result. The base is afterwards as it was before.
    """
    if to not in LAYOUTS:
        raise UsageError(f"to={to!r}", f"one of {', '.join(LAYOUTS)}", f"did you mean {nearest(to, LAYOUTS, 1)[0]!r}?")
    check_into(base, into)
    folder = Path(folder)
    if to == "peft":
        return _adapter(base, folder, _one(base, adapter), force)
    adapter = None if adapter is None else _one(base, adapter)
    into = into or usual_into(base)
    with replaced(folder, force=force) as partial, unmerged(base) as merged:
        names = merged if adapter is None or adapter in merged else [*merged, adapter]
        if not names and base.adapters:
            names = [_one(base, None)]
        source = original_of(base, names, original) if into == "original" else base
        _merged(source, partial, names, into, lossy)
        with READERS[to](partial, source) as reading:
            facts = certify(source, partial, to, reading, names, trained=base, notes={"into": into})
        if names and not lossy:
            judge_answers(" + ".join(names), facts["logits"], base.dtype)
    return folder


def _merged(base: "Base", folder: Path, names: Sequence[str], into: str | None, lossy: bool) -> None:
    """Write the model with these adapters merged, and what that cost; the base is then as before."""
    repack = into == "packed"
    with contextlib.ExitStack() as stack:
        reports = [_merge(base, name, lossy, repack, stack) for name in names]
        unpacked = write_model(base, folder, packed=repack)
        dequantised = sorted({*unpacked, *(layer for done in base.merged for layer in done.dequantised)})
    facts = {
        "base": base.name,
        "dtype": str(base.dtype).removeprefix("torch."),
        "into": into,
        "packed": base.quant if repack else "",
        "dequantised_layers": len(dequantised),
        "note": "; ".join(_notes(base, names, len(dequantised))),
        "adapters": reports,
    }
    (folder / REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _notes(base: "Base", names: Sequence[str], dequantised: int) -> list[str]:
    """What a reader of the report might not expect."""
    word = lambda quant: "unpacked" if quant == "none" else quant
    notes = [
        f"{name} was trained beside {word(base.adapters[name].beside)} weights and merged into {word(base.quant)} ones"
        for name in names
        if base.adapters[name].beside not in ("", base.quant)
    ]
    if dequantised:
        notes.append(f"{dequantised} packed layers were written in 16 bits from their dequantised values")
    return notes


def _merge(base: "Base", name: str, lossy: bool, repack: bool, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Merge one adapter until the stack closes, and say what it cost."""
    heads = [site.name for site, _ in base.adapters[name].inserts if site.kind == "final"]
    if heads:
        raise MergeError(
            f"{name!r} has a task head ({heads[0]}), which a plain {type(base.model).__name__} has no place for",
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
            given, "the name of one", f"pass adapter= one of {', '.join(known)}" if known else "attach one first"
        )
    if name not in known:
        remedy = f"did you mean {nearest(name, known, 1)[0]!r}?" if known else "attach or load one first"
        raise AdapterError(f"no adapter {name!r} on this base", f"one of {', '.join(known) or 'none yet'}", remedy)
    return name


CARD = """---
base_model: {base}
library_name: peft
tags: [adapter, {methods}]
---

# {name}

An adapter ({methods}) for `{base}`: {count:,} trained parameters. Its base is not in this folder.

    import graft
    base = graft.load("{base}")
    base.load_adapter("{folder}", "{name}")
    base.generate(["..."], adapters=["{name}"])
{foreign}"""

FOREIGN = """
With PEFT:

    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}")
"""


def _adapter(base: "Base", folder: Path, name: str, force: bool) -> Path:
    adapter = base.adapters[name]
    kinds = [method.peft_type for method in adapter.methods]
    foreign = (
        "" if len(kinds) > 1 or kinds[0].startswith("GRAFT") else FOREIGN.format(base=base.name, folder=folder.name)
    )
    methods = ", ".join(type(method).__module__.rpartition(".")[2] for method in adapter.methods)
    card = CARD.format(
        base=base.name, name=name, methods=methods, count=adapter.count(), folder=folder.name, foreign=foreign
    )
    with replaced(folder, force=force) as partial:
        adapter.save(partial)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        adapter.folder = None  # the folder itself, whose name is not its own yet
        with unmerged(base), READERS["peft"](partial, base) as reading:
            certify(base, partial, "peft", reading, [name])
    adapter.folder = folder.resolve()
    return folder
