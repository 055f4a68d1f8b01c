"""Export: the result in the layout that other programs load, a merged Hugging Face folder or an adapter of PEFT."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import AdapterError, MergeError, UsageError, nearest
from graft.export.faithful import answers, drift, judge, survival
from graft.export.folder import replaced, write_model, write_packed

if TYPE_CHECKING:
    from graft.base import Base

LAYOUTS = ("hf", "packed", "peft")
REPORT = "merge_report.json"


def export(
    base: "Base",
    folder: str | Path,
    to: str = "hf",
    *,
    adapter: str | None = None,
    force: bool = False,
    lossy: bool = False,
) -> Path:
    """Write a folder that transformers ("hf"), Graft ("packed") or PEFT ("peft") loads, and return it.

    adapter: which one; None: what is merged (hf, packed), or the only one there is. force: replace an existing folder.
    hf: the adapter is merged in fp32 and rounded once to the base's dtype, packed layers become 16-bit.  packed: layers
    of a quantised base stay packed where the adapter fits into their groups (QA-LoRA on int4). What it cost is in
    merge_report.json. Raises MergeError where it does not keep what the adapter learned, unless lossy.
    The base is afterwards as it was before.
    """
    if to not in LAYOUTS:
        raise UsageError(f"to={to!r}", f"one of {', '.join(LAYOUTS)}", f"did you mean {nearest(to, LAYOUTS, 1)[0]!r}?")
    folder = Path(folder)
    if to == "peft":
        return _adapter(base, folder, _one(base, adapter), force)
    merged = [done.adapter for done in base.merged]
    adapter = None if adapter is None else _one(base, adapter)
    wanted = merged if adapter is None or adapter in merged else [*merged, adapter]
    if not wanted and base.adapters:
        wanted = [_one(base, None)]
    with replaced(folder, force=force) as partial:
        for name in reversed(merged):
            base.unmerge(name)
        added: list[str] = []
        try:
            reports = [_merge(base, name, lossy, added, to == "packed") for name in wanted]
            unpacked = write_model(base, partial) if to == "hf" else write_packed(base, partial)
            dequantised = sorted({*unpacked, *(layer for done in base.merged for layer in done.dequantised)})
        finally:
            for name in reversed(added):
                base.unmerge(name)
            for name in merged:
                base.merge(name)
        facts = {
            "base": base.name,
            "dtype": str(base.dtype).removeprefix("torch."),
            "dequantised_layers": len(dequantised),
            "note": f"{len(dequantised)} packed layers were written in 16 bits from their dequantised values"
            if dequantised
            else "",
            "adapters": reports,
        }
        (partial / REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def _merge(base: "Base", name: str, lossy: bool, added: list[str], packed: bool) -> dict[str, Any]:
    """Merge one adapter and say what it cost."""
    heads = [site.name for site, _ in base.adapters[name].inserts if site.kind == "final"]
    if heads:
        raise MergeError(
            f"{name!r} has a task head ({heads[0]}), which a plain {type(base.model).__name__} has no place for",
            "an adapter that changes weights only",
            "export it with to='peft'",
        )
    before, adapted = answers(base, None), answers(base, name)
    report = survival(base.adapters[name], packed)
    done = base.merge(name)
    added.append(name)
    report |= {"adapter": name, "untied": done.untied, "logits": drift(before, adapted, answers(base, None))}
    if not lossy:
        judge(name, report, base.dtype)
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
    return folder
