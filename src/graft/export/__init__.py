"""Export: the result in the layout that other programs load: a merged model as a Hugging Face folder or a GGUF file, an
adapter as PEFT's folder or a GGUF file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import AdapterError, MergeError, UsageError, nearest
from graft.export.faithful import answers, drift, judge, survival
from graft.export.folder import replaced, write_model
from graft.export.gguf import file_name, write_gguf, write_lora
from graft.export.serve import modelfile, vllm
from graft.export.serve import write as write_serving

if TYPE_CHECKING:
    from graft.base import Base

LAYOUTS = ("hf", "gguf", "peft", "gguf-lora")
REPORT = "merge_report.json"


def export(
    base: "Base",
    folder: str | Path,
    to: str = "hf",
    *,
    type: str = "q8_0",
    adapter: str | None = None,
    force: bool = False,
    lossy: bool = False,
) -> Path:
    """Write a folder that transformers ("hf"), llama.cpp and Ollama ("gguf", or "gguf-lora" for the adapter alone) or
    PEFT ("peft") loads, and return it.

    type: gguf: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1. adapter: which one; None: what is merged (hf, gguf), or
    the only one there is. force: replace an existing folder.
    hf, gguf: the adapter is merged in fp32 and rounded once to the base's dtype, packed layers become 16-bit; what
    that cost is in merge_report.json. Raises MergeError where the merge does not keep what the adapter learned, unless
    lossy.
    The base is afterwards as it was before.
    """
    if to not in LAYOUTS:
        raise UsageError(f"to={to!r}", f"one of {', '.join(LAYOUTS)}", f"did you mean {nearest(to, LAYOUTS, 1)[0]!r}?")
    folder = Path(folder)
    if to in ("peft", "gguf-lora"):
        write = _adapter if to == "peft" else _gguf_lora
        return write(base, folder, _one(base, adapter), force)
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
            reports = [_merge(base, name, lossy, added) for name in wanted]
            unpacked = _hf(base, partial, folder.name) if to == "hf" else _gguf(base, partial, type)
            dequantised = sorted({*unpacked, *(layer for done in base.merged for layer in done.dequantised)})
        finally:
            for name in reversed(added):
                base.unmerge(name)
            for name in merged:
                base.merge(name)
        stored = "16 bits" if to == "hf" else type
        facts = {
            "base": base.name,
            "dtype": str(base.dtype).removeprefix("torch."),
            "dequantised_layers": len(dequantised),
            "note": f"{len(dequantised)} packed layers were written in {stored} from their dequantised values"
            if dequantised
            else "",
            "adapters": reports,
        }
        (partial / REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def _merge(base: "Base", name: str, lossy: bool, added: list[str]) -> dict[str, Any]:
    """Merge one adapter and say what it cost."""
    heads = [site.name for site, _ in base.adapters[name].inserts if site.kind == "final"]
    if heads:
        raise MergeError(
            f"{name!r} has a task head ({heads[0]}), which a plain {base.model.__class__.__name__} has no place for",
            "an adapter that changes weights only",
            "export it with to='peft'",
        )
    before, adapted = answers(base, None), answers(base, name)
    report = survival(base.adapters[name])
    done = base.merge(name)
    added.append(name)
    report |= {"adapter": name, "untied": done.untied, "logits": drift(before, adapted, answers(base, None))}
    if not lossy:
        judge(name, report, base.dtype)
    return report


def _hf(base: "Base", folder: Path, name: str) -> list[str]:
    unpacked = write_model(base, folder)
    if base.family == "causal" and base.tokenizer is not None:
        lines = ["ollama create NAME -f Modelfile", vllm(name)]
        write_serving(base, folder, name, lines, modelfile(base, "."))
    return unpacked


def _gguf(base: "Base", folder: Path, form: str) -> list[str]:
    unpacked = write_gguf(base, folder, form)
    file = file_name(base, form)
    lines = [f"llama-server -m {file}", "ollama create NAME -f Modelfile", vllm(file, tokenizer=base.name)]
    write_serving(base, folder, file, lines, modelfile(base, f"./{file}"))
    return unpacked


def _gguf_lora(base: "Base", folder: Path, name: str, force: bool) -> Path:
    with replaced(folder, force=force) as partial:
        file, model = write_lora(base, partial, name), file_name(base, "f16")
        lines = [f"llama-server -m {model} --lora {file}", "ollama create NAME -f Modelfile"]
        write_serving(base, partial, f"{file} beside {model}", lines, modelfile(base, f"./{model}", f"./{file}"))
    return folder


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

VLLM = """
With vLLM:

    {line}
"""


def _adapter(base: "Base", folder: Path, name: str, force: bool) -> Path:
    adapter = base.adapters[name]
    kinds = [method.peft_type for method in adapter.methods]
    own = len(kinds) > 1 or kinds[0].startswith("GRAFT")
    foreign = "" if own else FOREIGN.format(base=base.name, folder=folder.name)
    ranks = [len(form[0]) for _, insert in adapter.inserts if (form := insert.low_rank())]
    if ranks and len(ranks) == len(adapter.inserts):
        foreign += VLLM.format(line=vllm(base.name, lora=(name, folder.name, max(ranks))))
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
