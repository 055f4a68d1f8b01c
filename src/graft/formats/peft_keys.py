"""The keys of PEFT's tensors as PEFT itself writes them, whatever a trainer has put between their parts.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     as PEFT writes it
    ….q_proj.lora_A.default.weight                                     with the adapter's name: a state dict
    ….lm_head.modules_to_save.default.weight                           the same, of a module trained in full
    ….lm_head.original_module.weight                                   the base's own, which is left out
    module.…                                                           DistributedDataParallel
    ._orig_mod. ._fsdp_wrapped_module. ._checkpoint_wrapped_module.    torch.compile, FSDP, checkpointing

What is no part of a model's own name is taken out, and what PEFT puts before every key is put there.
"""

import re

import torch

from graft.errors import AdapterError, listed
from graft.formats.peft import Tensors

ROOT = "base_model."
# What torch's wrappers put into a name, as whole parts of it.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
OUTSIDE = ("module", "model", *WRAPPERS)  # what may stand before `base_model`
# The tensors of PEFT's methods begin so; the name of the adapter follows.
NAMED = re.compile(
    r"^(?P<stem>.*?\.?(?:lora|ia3|oft|boft|vera|hada|lokr|ln_tuning|trainable_tokens)_\w+)"
    r"\.(?P<name>(?!weight$|bias$)[^.]+)(?P<tail>\.weight|\.bias)?$"
)
SAVED = re.compile(r"^(?P<stem>.*)\.modules_to_save\.((?P<name>(?!(?:weight|bias)$)[^.]+)\.)?(?P<tail>.*)$")
ORIGINAL = ".original_module."  # the base's own module, beside the trained copy
TRAINING = (".lora_velora_", ".lora_monteclora_")  # tensors of PEFT's LoRA that only training reads
SHARDED = "_flat_param"  # FSDP's name of what it makes of many tensors
PROMPT = "prompt_embeddings"  # the only key of prompts and prefixes


def plain(tensors: Tensors) -> Tensors:
    """Return tensors under PEFT's own keys.

    Raises AdapterError for a file with several adapters, or with two tensors of one meaning.
    """
    found: Tensors = {}
    names: set[str] = set()
    for key, tensor in tensors.items():
        if ORIGINAL in key or any(part in key for part in TRAINING):
            continue
        # A matrix of no rows is whole: AdaLoRA prunes so.
        if (tensor.ndim < 2 and not tensor.numel()) or SHARDED in key:
            raise AdapterError(
                f"{key} {tuple(tensor.shape)} is a part of a tensor, or none of it: "
                "FSDP and DeepSpeed ZeRO-3 leave such files where they were not told to gather",
                "whole tensors",
                "save the adapter again under summon_full_params (FSDP) or GatheredParameters (DeepSpeed)",
            )
        clean, name = _plain(key)
        clean = clean if clean.startswith(ROOT) or clean == PROMPT else f"{ROOT}model.{clean}"
        names |= {name} if name else set()
        if clean in found and not torch.equal(found[clean], tensor):  # PEFT writes tables twice
            raise AdapterError(
                f"two tensors of the file mean {clean}, one of them {key}",
                "one tensor for each meaning",
                "save the adapter again with PEFT's save_pretrained",
            )
        found[clean] = tensor
    if len(names) > 1:
        raise AdapterError(
            f"the file holds the tensors of {len(names)} adapters: {listed(sorted(names))}",
            "one adapter in a folder",
            "save each of them alone: model.save_pretrained(FOLDER, selected_adapters=[NAME])",
        )
    return found


def _plain(key: str) -> tuple[str, str | None]:
    """Return (PEFT's own key, the name of the adapter that stood in it or None)."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTSIDE and ("base_model" in parts[1:] or parts[-1] == PROMPT):
        parts = parts[1:]
    key = ".".join(parts).replace(".token_adapter.base_layer.", ".base_layer.")
    match = SAVED.match(key)
    if match:
        return f"{match['stem']}.{match['tail']}", match["name"]
    match = NAMED.match(key)
    if match:
        key = f"{match['stem']}{match['tail'] or ''}"
    return re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", key), match["name"] if match else None
