"""Write an adapter for vLLM: PEFT's two files, in the one form that every vLLM computes as it was trained.

Of adapter_config.json all versions read `r` and `lora_alpha`, and multiply B by lora_alpha / r. A rank or an
alpha of single modules (`rank_pattern`, `alpha_pattern`) is read by 0.32 and not by older ones: there such an
adapter of PEFT's loads, and answers otherwise. So here every module has the same rank R and the same scale s:

    A → A, with zeros below it: (R, in)        B → B·(sᵢ / s), with zeros beside it: (out, R)
    r = R        lora_alpha = s·R

which changes none of the products B A. What is low-rank under another name, as QA-LoRA is, becomes LoRA.
SGLang reads the same files. From vllm/lora/peft_helper.py and vllm/lora/lora_model.py of several versions.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from graft.core.site import Site
from graft.errors import UsageError, listed, notice
from graft.layers.targets import matches
from graft.methods.lora import LoRA
from graft.shipping import adapter as alone
from graft.shipping import instructions, provenance
from graft.shipping.card import Use, embedded, write_card
from graft.shipping.factors import factors_of, rank_of, ranks_of
from graft.shipping.origin import Origin

if TYPE_CHECKING:
    from graft.base.base import Base

REWRITTEN = "as plain LoRA"  # the name of the adapter that is written
LARGEST = instructions.RANKS[-1]
IN_ONE_BATCH = 8  # adapters whose rows share one; vLLM's own default is 1, and each takes memory of the GPU
TEMPLATE = "chat_template.jinja"
NF4 = "--quantization bitsandbytes"  # packs the linears in nf4 while they are loaded


def check(base: "Base", name: str) -> None:
    """Raise UsageError for an adapter that vLLM refuses, or takes on some models only."""
    reasons = misfits(base, name)
    if reasons:
        told = "; ".join(f"{reason} ({listed(places, 2)})" for reason, places in reasons.items())
        raise UsageError(
            f"vLLM cannot take {name!r}: {told}",
            f"LoRA of rank {LARGEST} at most, on the linear layers of a decoder",
            "merge it with to='hf': vLLM serves that as a model of its own; `graft serve` takes every kind",
        )


def misfits(base: "Base", name: str) -> dict[str, list[str]]:
    """Return {what vLLM cannot take: where it is}; empty for an adapter that fits."""
    adapter = base.adapters[name]
    found: dict[str, list[str]] = {}
    if base.family != "causal":
        found["its base is no decoder"] = [provenance.public_name(base)]
    for method, part in zip(adapter.methods, adapter.parts, strict=True):
        for site, insert in part.inserts:
            if reason := _misfit(method.name(), site, insert):
                found.setdefault(reason, []).append(site.name or site.kind)
    wide = [module for module, rank in ranks_of(adapter).items() if rank > LARGEST]
    return found | ({f"a rank above {LARGEST}": wide} if wide else {})


def _misfit(method: str, site: Site, insert: Any) -> str | None:
    """Return why an insert does not fit; None if it does."""
    if getattr(insert, "dora", False):
        return "DoRA, whose magnitudes it does not read"
    if insert.low_rank() is None:
        biased = getattr(insert, "bias", None) is not None
        return "a bias beside B" if biased else f"{method} is more than a low-rank update"
    if site.kind != "linear":
        return f"LoRA at the {'table' if site.kind == 'embed' else 'head'}"
    return "LoRA at a Conv1D" if site.transposed else None


def write(base: "Base", folder: Path, name: str, final: str, origin: Origin | None = None) -> None:
    """Write the two files, the tokenizer, and a card with the commands.  final: the folder's later name."""
    adapter = base.adapters[name]
    factors, scale = factors_of(adapter)
    r = rank_of(adapter)
    alpha = scale * r
    rewritten = base.attach(
        REWRITTEN,
        LoRA(
            r=r,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            target_modules=_targets(base, list(factors)),
        ),
    )
    try:
        rewritten.trained_on = adapter.trained_on
        with torch.no_grad():
            for site, insert in rewritten.inserts:
                form = insert.low_rank()
                if form is not None:
                    A, B = factors[site.name]
                    rest = r - len(A)
                    form[0].copy_(F.pad(A, (0, 0, 0, rest)))
                    form[1].copy_(F.pad(B, (0, rest)))
        alone.save_as(rewritten, folder, provenance.name_for_peft(base))
    finally:
        base.detach(REWRITTEN)
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(folder)
    told = notes([adapter.trained_on])
    for note in [*told, *([embedded()] if base.name == provenance.EMBEDDED else [])]:
        notice(note)
    _write_card(base, folder, name, final, r, told, origin)


def _targets(base: "Base", modules: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest names that mean these modules: their last parts if those mean no other."""
    last = sorted({module.rpartition(".")[2] for module in modules})
    places = {site.name for site in base.sites if site.kind in LoRA.kinds}
    meant = {place for place in places if matches(place, last)}
    return tuple(last if meant == set(modules) else sorted(modules))


def command(base: str, adapters: Mapping[str, str], r: int, trained_on: Sequence[str] = ()) -> str:
    """Return the command that serves a base with adapters.

    adapters: their folders by name.  r: the largest rank.  trained_on: how the base was stored in training.

    >>> print(command("models/llama", {"sql": "out/sql"}, 12))
    vllm serve models/llama --enable-lora --lora-modules sql=out/sql --max-lora-rank 16
    """
    packed = f" {NF4}" if "nf4" in trained_on else ""
    if len(adapters) == 1:
        ((name, folder),) = adapters.items()
        return instructions.vllm(base, lora=(shlex.quote(name), shlex.quote(folder), r)) + packed
    rank = instructions.vllm_rank(r)
    batch = min(len(adapters), IN_ONE_BATCH)
    lines = [
        f"vllm serve {base} --enable-lora --max-lora-rank {rank}{packed}",
        f"--max-loras {batch} --max-cpu-loras {len(adapters)} --lora-modules",
        *_pairs(adapters),
    ]
    return " \\\n  ".join(lines)


def command_of_sglang(base: str, adapters: Mapping[str, str]) -> str:
    """Return the command of SGLang."""
    first = f"python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths"
    return (" " if len(adapters) == 1 else " \\\n  ").join([first, *_pairs(adapters)])


def _pairs(adapters: Mapping[str, str]) -> list[str]:
    return [f"{shlex.quote(name)}={shlex.quote(folder)}" for name, folder in adapters.items()]


def notes(trained_on: Sequence[str]) -> list[str]:
    """Return what one must know of the base there.  trained_on: how it was stored, of each adapter."""
    told = []
    kinds = sorted({kind for kind in trained_on if kind not in ("", "none")})
    if "nf4" in kinds:
        told.append(
            f"The base was in nf4 while training. `{NF4}` packs it so in vLLM; without it the base is in 16 "
            "bits, and answers shift a little."
        )
    if others := [kind for kind in kinds if kind != "nf4"]:
        told.append(
            f"The base was in {' and '.join(others)} while training, which vLLM does not read as Graft "
            "writes it. It serves the base in 16 bits, where answers shift a little, or packed anew: "
            "`graft export BASE NEW_BASE --to awq`."
        )
    return told


def _write_card(
    base: "Base", folder: Path, name: str, final: str, r: int, told: Sequence[str], origin: Origin | None
) -> None:
    adapter = base.adapters[name]
    place, mine = instructions.tokenizer_place(base), {name: f"./{final}"}
    words = {"base": provenance.name_for_peft(base), "folder": final, "name": name}
    uses = [
        Use("With vLLM", command(place, mine, r, [adapter.trained_on])),
        Use("With SGLang", command_of_sglang(place, mine)),
        Use("With PEFT", alone.PEFT.format(auto=alone.AUTO["causal"], **words), "python"),
        Use("With Graft", alone.GRAFT.format(**words), "python"),
    ]
    methods = [method.name() for method in adapter.methods]
    summary = (
        f"An adapter ({', '.join(methods)}) for `{provenance.public_name(base)}`, as LoRA of rank {r}. Its "
        "base is not in this folder. The lines run in the folder above this one."
    )
    said = [*told, "vLLM takes LoRA on the models that its list of supported models marks so."]
    if (folder / TEMPLATE).is_file():
        said.append(
            f"vLLM and SGLang render chats by the base's template, for all adapters. `--chat-template "
            f"./{final}/{TEMPLATE}` is that of training."
        )
    said += [alone.nameless(base)] if provenance.is_nameless(base) else []
    about: dict[str, Any] = {"library": "peft", "relation": "adapter", "tags": ["adapter", "lora", "vllm"]}
    write_card(base, folder, final, summary, uses, origin=origin, notes=said, **about)
