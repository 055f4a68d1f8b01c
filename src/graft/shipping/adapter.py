"""Write an adapter alone: as PEFT's folder, or as a GGUF file for use with the file of its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.base.adapter_files import config_of, lost_in_peft
from graft.errors import UsageError, listed
from graft.shipping import instructions, provenance
from graft.shipping.card import Use, write_card
from graft.shipping.gguf import file_name, write_lora
from graft.shipping.origin import Origin

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

GRAFT = """import graft
base = graft.load("{base}")
base.load_adapter("./{folder}", "{name}")
base.generate(["..."], adapters=["{name}"])"""
PEFT = """from peft import PeftModel
from transformers import {auto}
base = {auto}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "./{folder}")"""
AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def check_peft(base: "Base", name: str) -> None:
    """Raise UsageError for an adapter whose targets PEFT would take for experts of a mixture."""
    adapter = base.adapters[name]
    lost = lost_in_peft(config_of(adapter.methods, adapter.parts, {}), adapter.parts)
    if lost:
        raise UsageError(
            f"to='peft' for {name!r} with targets that PEFT takes for experts: {listed(lost)}",
            "an adapter that PEFT answers with as Graft does",
            "merge it (to='hf'), or train one without these targets; adapter.save writes it for Graft",
        )


def write_peft(base: "Base", folder: Path, name: str, final_name: str, origin: Origin | None = None) -> None:
    """Write adapter_config.json, adapter_model.safetensors, the tokenizer, and a card on how to load them.

    final_name: what the folder will be called.
    """
    adapter = base.adapters[name]
    save_as(adapter, folder, provenance.name_for_peft(base))
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(folder)
    _write_card(base, folder, name, final_name, origin)


def save_as(adapter: "Adapter", folder: Path, base_name: str) -> None:
    """Save an adapter whose files name its base by this name."""
    own = adapter.base
    adapter.base = lambda: {**own(), "name": base_name}
    try:
        adapter.save(folder)
    finally:
        adapter.base = own
    adapter.folder = None  # this folder is temporary: a certificate must not point at it


def write_gguf_lora(base: "Base", folder: Path, name: str, origin: Origin | None = None) -> None:
    """Write ADAPTER-lora.gguf, with a Modelfile that puts it on the base's file."""
    file, model = write_lora(base, folder, name), file_name(base, "f16")
    instructions.write_lora(base, folder, file, model, origin)


def _write_card(base: "Base", folder: Path, name: str, final: str, origin: Origin | None) -> None:
    adapter = base.adapters[name]
    kinds = [method.files.peft_type for method in adapter.methods]
    ours = len(kinds) > 1 or kinds[0].startswith("GRAFT")
    place = provenance.name_for_peft(base)
    words: dict[str, Any] = {"base": place, "folder": final, "name": name}
    uses = [Use("With Graft", GRAFT.format(**words), "python")]
    if not ours:
        peft = PEFT.format(auto=AUTO.get(base.family, "AutoModel"), **words)
        uses.append(Use("With PEFT", peft, "python"))
    forms = [insert.low_rank() if site.kind == "linear" else None for site, insert in adapter.inserts]
    alike = {(len(form[0]), form[2]) if form else None for form in forms}
    if not ours and len(alike) == 1 and (only := alike.pop()):  # to="vllm" makes others alike
        uses.append(Use("With vLLM", instructions.vllm(place, lora=(name, f"./{final}", only[0]))))
    methods = [method.name() for method in adapter.methods]
    summary = (
        f"An adapter ({', '.join(methods)}) for `{provenance.public_name(base)}`: {adapter.count():,} "
        "trained parameters. Its base is not in this folder. The lines run in the folder above this one."
    )
    about: dict[str, Any] = {"library": "peft", "relation": "adapter", "tags": ["adapter", *methods]}
    notes = [nameless(base)] if provenance.is_nameless(base) else []
    write_card(base, folder, final, summary, uses, origin=origin, notes=notes, **about)


def nameless(base: "Base") -> str:
    """Return how to load an adapter whose config names its base without the way to it."""
    return (
        f"adapter_config.json names the base `{provenance.name_for_peft(base)}`, without the folders that it "
        "lies in: load the base from where it is, then PeftModel.from_pretrained(base, FOLDER)."
    )
