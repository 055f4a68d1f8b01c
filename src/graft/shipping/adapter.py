"""An adapter alone: PEFT's folder, or a GGUF file beside the base's."""

from pathlib import Path
from typing import TYPE_CHECKING

from graft.shipping import instructions
from graft.shipping.certificate import certify, unmerged
from graft.shipping.gguf import file_name, write_lora
from graft.shipping.hf import replaced
from graft.shipping.readback import READERS

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


def write_peft(base: "Base", folder: Path, name: str, *, force: bool) -> Path:
    """adapter_config.json and adapter_model.safetensors, the tokenizer, and a card that says how to load them."""
    adapter = base.adapters[name]
    with replaced(folder, force=force) as partial:
        adapter.save(partial)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(_card(base, name, folder.name), encoding="utf-8")
        adapter.folder = None  # the folder itself, whose name is not its own yet
        _certify(base, partial, "peft", name)
    adapter.folder = folder.resolve()
    return folder


def write_gguf_lora(base: "Base", folder: Path, name: str, *, force: bool) -> Path:
    """ADAPTER-lora.gguf, with a Modelfile that puts it on the base's file."""
    with replaced(folder, force=force) as partial:
        file, model = write_lora(base, partial, name), file_name(base, "f16")
        instructions.write_lora(base, partial, file, model)
        _certify(base, partial, "gguf-lora", name)
    return folder


ADAPTERS = {"peft": write_peft, "gguf-lora": write_gguf_lora}


def _certify(base: "Base", folder: Path, to: str, name: str) -> None:
    with unmerged(base), READERS[to](folder, base) as reading:
        certify(base, folder, to, reading, [name])


def _card(base: "Base", name: str, folder: str) -> str:
    adapter = base.adapters[name]
    kinds = [method.files.peft_type for method in adapter.methods]
    own = len(kinds) > 1 or kinds[0].startswith("GRAFT")
    foreign = "" if own else FOREIGN.format(base=base.name, folder=folder)
    ranks = [len(form[0]) for _, insert in adapter.inserts if (form := insert.low_rank())]
    if ranks and len(ranks) == len(adapter.inserts):
        foreign += VLLM.format(line=instructions.vllm(base.name, lora=(name, folder, max(ranks))))
    methods = ", ".join(method.name() for method in adapter.methods)
    return CARD.format(
        base=base.name, name=name, methods=methods, count=adapter.count(), folder=folder, foreign=foreign
    )
