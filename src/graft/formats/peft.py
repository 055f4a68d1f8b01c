"""PEFT's two files: `adapter_config.json` and `adapter_model.safetensors`, written and read exactly.

A method that PEFT has is written so that PEFT loads it; another method, or a mix of several, is written into the same
two files under our own `peft_type`. What only we need (the base's fingerprint, fields that PEFT does not know) lies in
the metadata of the safetensors file, where other readers overlook it.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from graft import storage
from graft.core.insert import Insert
from graft.core.method import Method
from graft.core.registry import find, names
from graft.core.site import Site
from graft.errors import AdapterError
from graft.formats import adapters, mlx

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MIXED = "GRAFT_MIX"
HEADS = ("score", "classifier")
ROOTS = ("base_model.model", "base_model")  # of keys in files of methods inside and beside the model
MAX_RANK = 4096
Seats = Sequence[Sequence[tuple[Site, Insert]]]  # (site, insert) pairs, one list per method
# Keys of PEFT that describe where an adapter came from, not what it computes.
SILENT = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "fan_in_fan_out", "megatron_core", "megatron_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "velora_config", "kasa_config", "monteclora_config", "arrow_config", "qalora_group_size",
    "ensure_weight_tying", "init_weights",
}  # fmt: skip


def write(
    folder: Path,
    methods: Sequence[Method],
    seats: Seats,
    tensors: dict[str, torch.Tensor],
    base: dict[str, Any],
) -> Path:
    """Write the two files, then read the tensors again: a file that is not whole never ends as success."""
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(
            f"{bad[0]} holds NaN or Inf ({len(bad)} tensors do)",
            "finite tensors",
            "go back to the last good checkpoint",
        )
    folder.mkdir(parents=True, exist_ok=True)
    own = [{"name": m.name(), **{k: m.config()[k] for k in m.own_fields}} for m in methods]
    # One entry: safetensors writes several in random order, and equal adapters shall be equal files.
    metadata = {"graft": json.dumps({"methods": own, "base": base}, sort_keys=True)}
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with storage.new_file(folder / WEIGHTS) as partial:
        save_file(kept, partial, metadata=metadata)
        with safe_open(partial, "pt") as written:
            written_keys = set(written.keys())
            lost = [
                key
                for key in kept
                if key not in written_keys or not torch.equal(written.get_tensor(key), kept[key])
            ]
        if lost:
            raise AdapterError(
                f"{lost[0]} did not reach {partial}",
                "the tensors that were written",
                "check the disk and save again",
            )
    config = json.dumps(_config(methods, seats, base), indent=2, sort_keys=True) + "\n"
    storage.replace(folder / CONFIG, config.encode())
    return folder


@unset_fake_temporarily()  # a file is real, also while a plan without numbers is made
def read(folder: Path, sites: Sequence[Site]) -> tuple[list[Method], dict[str, torch.Tensor], dict[str, Any]]:
    """(methods, tensors, base) of an adapter folder; `base` is empty for a file that is not ours.

    sites: of the base, which tell its own heads from an adapter's. A folder of the `adapters` library or of mlx-lm is
    translated, and so is the GGUF file of a LoRA.

    The header is checked before a tensor is read: rank, dtype and finiteness are bounded, so that a hostile file
    cannot make us allocate what it does not contain.
    """
    try:
        config, tensors, extra = _files(folder, sites)
        owner = _owner(config)
        if owner is not None:
            config, tensors = owner.from_peft(config, tensors)
        methods = _methods(config, extra.get("methods", []), tensors, sites)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(
            f"{folder} is damaged ({error})",
            "the two files of an adapter, whole",
            "copy it again from where it came",
        ) from error
    bad = [key for key, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise AdapterError(
            f"{bad[0]} in {folder} holds NaN or Inf",
            "finite tensors",
            "use another checkpoint of this adapter",
        )
    return methods, tensors, extra.get("base", {})


def _files(
    folder: Path, sites: Sequence[Site]
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """(config, tensors, what only we wrote), in PEFT's layout or ours."""
    if folder.suffix == ".gguf" and folder.is_file():
        from graft.formats import gguf_file  # late: it needs transformers

        return *gguf_file.lora(folder, sites[0].root.config), {}
    if not (folder / CONFIG).is_file():
        near = sorted(str(p.parent) for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        raise AdapterError(
            f"{folder} holds no {CONFIG}",
            "an adapter folder",
            f"did you mean {near[0]}?" if near else "check the path",
        )
    others = (other for other in (adapters, mlx) if (folder / other.WEIGHTS).is_file())
    foreign = None if (folder / WEIGHTS).is_file() else next(others, None)
    weights = folder / (foreign.WEIGHTS if foreign else WEIGHTS)
    if not weights.is_file():
        raise AdapterError(
            f"{folder} holds no {WEIGHTS}",
            "safetensors: pickle files (.bin, .pt) can run code and are not read",
            "convert a legacy file with `graft convert`, or save it again with safe_serialization=True "
            "(use_safetensors=True in the `adapters` library)",
        )
    config = json.loads((folder / CONFIG).read_text())
    with safe_open(weights, "pt") as file:
        extra = json.loads((file.metadata() or {}).get("graft", "{}"))
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    if foreign is adapters:
        adapters.warn_of_head(folder)
    if foreign is not None:
        config, tensors = foreign.translated(config, tensors, sites)
    return config, tensors, extra


def without_base_copies(
    tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    """`tensors` without what PEFT writes twice: the base's own tables beside embedding adapters, and second names of
    tied biases. Only exact copies go; anything else stays, to be named as unexpected."""
    own = dict(model.named_parameters(remove_duplicate=False))
    kept = dict(tensors)
    for key in tensors.keys() - wanted.keys():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        aliases = [f"base_model.model.{n}" for n, p in own.items() if name in own and p is own[name]]
        same = [tensors[a] for a in aliases if a in wanted and a in tensors] or [
            own[n] for n in own if n == name
        ]
        if any(t.shape == tensors[key].shape and torch.equal(t.float(), tensors[key].float()) for t in same):
            del kept[key]
    return kept


def trunk(model: Any) -> str:
    """What a model with a head puts before the names of this one: "bert." for a bare BertModel, else ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and model.base_model is model else ""


def named_here(
    tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], model: Any
) -> dict[str, torch.Tensor]:
    """`tensors` under the names that `wanted` has: `bert.encoder` of a model with a head is `encoder` of a bare one."""
    bare, headed = "base_model.model.", f"base_model.model.{getattr(model, 'base_model_prefix', '')}."
    named = {}
    for key, tensor in tensors.items():
        other = key.replace(headed, bare, 1) if key.startswith(headed) else key.replace(bare, headed, 1)
        named[other if key not in wanted and other in wanted else key] = tensor
    return named


def _config(methods: Sequence[Method], seats: Seats, base: dict[str, Any]) -> dict[str, Any]:
    """One method: PEFT's config. Several: a list of them. A task head becomes `modules_to_save`, as in PEFT."""
    common = {
        "base_model_name_or_path": base.get("name"),
        "inference_mode": True,
        "task_type": base.get("task_type"),
    }
    parts = [
        {"peft_type": m.peft_type, **m.file_config(part)}
        for m, part in zip(methods, seats, strict=True)
        if not m.is_head()
    ]
    heads: list[str] = []
    for method, part in zip(methods, seats, strict=True):
        if method.is_head():
            heads += [site.name for site, _ in part if site.kind == "final"]
            common |= method.file_config(part)
    if heads and parts:
        parts[0]["modules_to_save"] = [*(parts[0].get("modules_to_save") or []), *heads]
    if not parts:
        return {**common, "peft_type": methods[0].peft_type}
    return {**common, **parts[0]} if len(parts) == 1 else {**common, "peft_type": MIXED, "methods": parts}


def _methods(
    config: dict[str, Any], own: list[dict[str, Any]], tensors: dict[str, Any], sites: Sequence[Site]
) -> list[Method]:
    """The methods of a config, the task head told from `modules_to_save` by the base not having such a module."""
    parts = [dict(part) for part in (config["methods"] if config.get("peft_type") == MIXED else [config])]
    saved = list(parts[0].get("modules_to_save") or [])
    there = [name for name in HEADS if any(f"{root}.{name}.weight" in tensors for root in ROOTS)]
    if there:  # PEFT lists both names, whichever the model has
        saved = [name for name in saved if name not in HEADS or name in there]
    modules = {name for name, _ in sites[0].root.named_modules()}
    heads = [name for name in HEADS if name in saved and name not in modules]  # PEFT may list a name twice
    parts[0]["modules_to_save"] = [name for name in saved if name not in heads]
    own_heads = [extra for extra in own if find(extra["name"]).is_head()]
    own_rest = [extra for extra in own if extra not in own_heads]
    if not own_heads or own_rest:
        methods = [
            _method(part, dict(extra))
            for part, extra in zip(parts, own_rest or [{}] * len(parts), strict=True)
        ]
    else:
        methods = []  # a linear probe: a head and nothing else
    if own_heads:
        return [
            *methods,
            *(_method({"peft_type": find(extra["name"]).peft_type}, dict(extra)) for extra in own_heads),
        ]
    for name in heads:  # PEFT's file: the head's shape is in its tensor
        weight = next((tensors[key] for root in ROOTS if (key := f"{root}.{name}.weight") in tensors), None)
        if weight is None:
            raise AdapterError(
                f"the head {name!r} is not in the file",
                f"a tensor base_model.model.{name}.weight",
                "load the base with its own classification head",
            )
        row = "last" if name == "score" else "first"
        settings = {
            "num_labels": len(weight),
            "pool": "none" if config.get("task_type") == "TOKEN_CLS" else row,
        }
        methods.append(find("task_head").from_file(settings))
    return methods


def _method(config: dict[str, Any], own: dict[str, Any]) -> Method:
    """The method that a config describes; refuses what would change the result and is not known here."""
    own.pop("name", None)
    cls = _owner(config)
    if cls is None:
        known = sorted({find(n).peft_type for n in names()})
        raise AdapterError(
            f"peft_type {config.get('peft_type')!r} is not known here",
            f"one of {', '.join(known)}",
            "train it again with one of these methods",
        )
    known_fields = {f.name for f in fields(cls)}
    harmless = known_fields | SILENT | cls.idle_fields
    ignored = {k: v for k, v in config.items() if k not in harmless and v not in (None, False, [], {}, "")}
    if ignored:
        shown = ", ".join(f"{k}={v!r}" for k, v in ignored.items())
        raise AdapterError(
            f"the adapter uses {shown}",
            f"settings of {cls.__name__} that Graft knows",
            "load it with the tool that wrote it",
        )
    settings = {k: _frozen(v) for k, v in {**config, **own}.items() if k in known_fields and v is not None}
    rank = settings.get("r", 1)
    lowest = min(
        1, getattr(cls, "r", 1)
    )  # 0 where that is the default: blocks that are given by their size instead
    if not isinstance(rank, int) or not lowest <= rank <= MAX_RANK:
        raise AdapterError(
            f"r={rank!r}",
            f"a rank from {lowest} to {MAX_RANK}",
            "this file is damaged or hostile: do not use it",
        )
    return cls.from_file(settings)


def _owner(config: dict[str, Any]) -> type[Method] | None:
    """The method whose marks a config bears, or else whose type it names."""
    known = [find(name) for name in names()]
    marked = [c for c in known if c.peft_marks and all(config.get(k) == v for k, v in c.peft_marks.items())]
    named = [c for c in known if c.peft_type == config.get("peft_type")]
    return next(iter(marked + named), None)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
