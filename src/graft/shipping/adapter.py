"""Write an adapter alone: as PEFT's folder, or as a GGUF file for use with the file of its base."""

from pathlib import Path
from typing import TYPE_CHECKING

from graft.base.adapter_files import config_of, lost_in_peft
from graft.errors import UsageError, listed
from graft.shipping import instructions
from graft.shipping.gguf import file_name, write_lora

if TYPE_CHECKING:
    from graft.base.base import Base

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


def write_peft(base: "Base", folder: Path, name: str, final_name: str) -> None:
    """Write adapter_config.json, adapter_model.safetensors, the tokenizer, and a card on how to load them.

    final_name: what the folder will be called.
    """
    adapter = base.adapters[name]
    adapter.save(folder)
    adapter.folder = None  # this folder is temporary: a certificate must not point at it
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(base, name, final_name), encoding="utf-8")


def write_gguf_lora(base: "Base", folder: Path, name: str) -> None:
    """Write ADAPTER-lora.gguf, with a Modelfile that puts it on the base's file."""
    file, model = write_lora(base, folder, name), file_name(base, "f16")
    instructions.write_lora(base, folder, file, model)


def _card(base: "Base", name: str, folder: str) -> str:
    adapter = base.adapters[name]
    kinds = [method.files.peft_type for method in adapter.methods]
    ours = len(kinds) > 1 or kinds[0].startswith("GRAFT")
    foreign = "" if ours else FOREIGN.format(base=base.name, folder=folder)
    ranks = [len(form[0]) for _, insert in adapter.inserts if (form := insert.low_rank())]
    if ranks and len(ranks) == len(adapter.inserts):
        foreign += VLLM.format(line=instructions.vllm(base.name, lora=(name, folder, max(ranks))))
    methods = ", ".join(method.name() for method in adapter.methods)
    return CARD.format(
        base=base.name, name=name, methods=methods, count=adapter.count(), folder=folder, foreign=foreign
    )
