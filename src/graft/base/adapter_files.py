"""Adapter files: which methods the settings of a file mean, and what a file says about an adapter.

A method that PEFT has is written so that PEFT loads it. Another method, or a mix of several, is written into
the same two files under our own `peft_type`. Folders of the `adapters` library and of mlx-lm, and the GGUF
file of a LoRA, are translated when they are read.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from graft.core import registry
from graft.core.method import Method
from graft.core.part import Part
from graft.core.site import Site
from graft.errors import AdapterError
from graft.formats import adapterhub, mlx, peft, peft_experts
from graft.formats.peft import CONFIG, WEIGHTS, Settings, Tensors
from graft.quant.finite import require_finite

MIXED = "GRAFT_MIX"
HEADS = ("score", "classifier")
INSIDE = "base_model.model"  # what keys start with, for methods inside the model
BESIDE = "base_model"  # and for methods that PEFT stores outside it
MAX_RANK = 4096
# Keys of PEFT that describe where an adapter came from, not what it computes.
SILENT = {
    "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "fan_in_fan_out", "inference_mode", "init_weights", "kasa_config", "loftq_config",
    "lora_ga_config", "megatron_config", "megatron_core", "monteclora_config", "peft_type", "peft_version",
    "qalora_group_size", "revision", "task_type", "velora_config",
}  # fmt: skip


class Keys:
    """The keys of one adapter's tensors in its file.

    A key is ROOT.SITE.SUFFIX, as PEFT has it. In a mix of several methods the number of the method stands
    before the suffix. Next to a task head, PEFT's keys name the backbone inside its model with a head.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self._mixed = sum(not method.is_head() for method in methods) > 1
        self._headed = any(method.classifies() for method in methods)
        self._root = BESIDE if any(method.files.beside_model for method in methods) else INSIDE

    def key(self, index: int, site: Site, suffix: str) -> str:
        """Return the key of a tensor that method number `index` saved at `site`.

        A suffix that starts with "/" is the whole key: it belongs to the adapter, not to one site.
        """
        part = f"{index}." if self._mixed and site.kind != "final" else ""
        if suffix.startswith("/"):
            return part + suffix[1:]
        backbone = trunk(site.root) if self._headed and site.kind != "final" else ""
        return f"{self._root}.{backbone}{site.path}.{part}{suffix}"


def write(
    folder: Path, methods: Sequence[Method], parts: Sequence[Part], tensors: Tensors, base: Settings
) -> Path:
    """Write an adapter's two files.  base: what they say about the base that it belongs to."""
    named = [{"name": m.name(), **m.files.own_settings(m)} for m in methods]
    return peft.write(folder, _config(methods, parts, base), tensors, {"methods": named, "base": base})


@unset_fake_temporarily()  # a file is real, also while a plan without numbers is made
def read(folder: Path, sites: Sequence[Site]) -> tuple[list[Method], Tensors, Settings]:
    """Return (methods, tensors, base) of an adapter folder; `base` is empty if Graft did not write it.

    sites: those of the base that it is for; they tell the base's own heads from an adapter's.

    Rank, dtype and finiteness are checked before a tensor is used, so that a hostile file cannot make us
    allocate what it does not contain. Raises AdapterError.
    """
    try:
        config, tensors, facts = _files(folder, sites)
        owner = _owner(config)
        if owner is not None:
            config, tensors = owner.files.convert(config, tensors)
            config, tensors = peft_experts.stacked(config, tensors, sites)
        methods = _methods(config, facts.get("methods", []), tensors, sites)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(
            f"{folder} is damaged ({error})",
            "the two files of an adapter, whole",
            "copy it again from where it came",
        ) from error
    require_finite(tensors.items(), AdapterError, "use another checkpoint of this adapter", folder)
    return methods, tensors, facts.get("base", {})


def check_base(folder: str | Path, trained_on: Settings, name: str, fingerprint: str) -> None:
    """Raise AdapterError if a file says that its adapter was trained on another base.

    trained_on: what the file says about its base.  name, fingerprint: of the base at hand.
    """
    theirs = trained_on.get("fingerprint")
    if theirs and theirs != fingerprint:
        raise AdapterError(
            f"{folder} was trained on another base: {trained_on.get('name') or '?'} "
            f"(fingerprint {theirs[:12]})",
            f"an adapter of {name} (fingerprint {fingerprint[:12]})",
            "load that base, or pass force=True if you know that they fit",
        )


def _files(folder: Path, sites: Sequence[Site]) -> tuple[Settings, Tensors, Settings]:
    """Return (config, tensors, what only Graft writes) of files of any tool, in PEFT's layout or ours."""
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
    if (folder / WEIGHTS).is_file():
        return peft.read(folder)
    if (folder / adapterhub.WEIGHTS).is_file():
        adapterhub.warn_of_head(folder)
        config, tensors, facts = peft.read(folder, adapterhub.WEIGHTS)
        return *adapterhub.translated(config, tensors, sites, _known()), facts
    if (folder / mlx.WEIGHTS).is_file():
        config, tensors, facts = peft.read(folder, mlx.WEIGHTS)
        return *mlx.translated(config, tensors, sites), facts
    raise AdapterError(
        f"{folder} holds no {WEIGHTS}",
        "safetensors: pickle files (.bin, .pt) can run code and are not read",
        "convert a legacy file with `graft convert`, or save it again with safe_serialization=True "
        "(use_safetensors=True in the `adapters` library)",
    )


def without_base_copies(tensors: Tensors, wanted: Tensors, model: nn.Module) -> Tensors:
    """Return `tensors` without what PEFT writes twice: tables of the base, and second names of tied biases.

    Only exact copies are dropped. Anything else stays, so that it is reported as unexpected.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = dict(tensors)
    for key in tensors.keys() - wanted.keys():
        name = key.removeprefix(f"{INSIDE}.").replace(".base_layer.", ".")
        aliases = [f"{INSIDE}.{n}" for n, p in parameters.items() if p is parameters.get(name)]
        same = [tensors[a] for a in aliases if a in wanted and a in tensors]
        if not same and name in parameters:
            same = [parameters[name]]
        if any(t.shape == tensors[key].shape and torch.equal(t.float(), tensors[key].float()) for t in same):
            del kept[key]
    return kept


def trunk(model: Any) -> str:
    """Return what a model with a head puts before this model's names: "bert." for a bare BertModel, or ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and model.base_model is model else ""


def named_here(tensors: Tensors, wanted: Tensors, model: Any) -> Tensors:
    """Return `tensors` under the keys of `wanted`: `bert.encoder` with a head, `encoder` without."""
    bare, headed = f"{INSIDE}.", f"{INSIDE}.{getattr(model, 'base_model_prefix', '')}."
    named = {}
    for key, tensor in tensors.items():
        other = key.replace(headed, bare, 1) if key.startswith(headed) else key.replace(bare, headed, 1)
        named[other if key not in wanted and other in wanted else key] = tensor
    return named


def _config(methods: Sequence[Method], parts: Sequence[Part], base: Settings) -> Settings:
    """Return the config of an adapter: one method's, or a list of several; heads are in `modules_to_save`."""
    common = {
        "base_model_name_or_path": base.get("name"),
        "inference_mode": True,
        "task_type": base.get("task_type"),
    }
    configs = [
        {"peft_type": method.files.peft_type, **method.files.describe(method, part)}
        for method, part in zip(methods, parts, strict=True)
        if not method.is_head()
    ]
    heads: list[str] = []
    for method, part in zip(methods, parts, strict=True):
        if method.is_head():
            heads += [site.name for site, _ in part.inserts if site.kind == "final"]
            common |= method.files.describe(method, part)
    if heads and configs:
        configs[0]["modules_to_save"] = [*(configs[0].get("modules_to_save") or []), *heads]
    if not configs:
        return {**common, "peft_type": methods[0].files.peft_type}
    if len(configs) == 1:
        return {**common, **configs[0]}
    return {**common, "peft_type": MIXED, "methods": configs}


def _methods(
    config: Settings, named: list[Settings], tensors: Tensors, sites: Sequence[Site]
) -> list[Method]:
    """Return the methods of a config.

    PEFT saves a task head as one of `modules_to_save`: a name there is a head if the base has no such module.
    named: by method, its name and the settings that PEFT does not know; empty if Graft did not write it.
    """
    parts = [dict(part) for part in (config["methods"] if config.get("peft_type") == MIXED else [config])]
    saved = list(parts[0].get("modules_to_save") or [])
    present = [name for name in HEADS if _head_weight(name, tensors) is not None]
    if present:  # PEFT lists both names, whichever the model has
        saved = [name for name in saved if name not in HEADS or name in present]
    modules = {name for name, _ in sites[0].root.named_modules()}
    heads = [name for name in HEADS if name in saved and name not in modules]  # PEFT may list a name twice
    parts[0]["modules_to_save"] = [name for name in saved if name not in heads]
    our_heads = [extra for extra in named if registry.find(extra["name"]).is_head()]
    others = [extra for extra in named if extra not in our_heads]
    methods: list[Method] = []
    if others or not our_heads:  # else it is a linear probe: a head and nothing else
        pairs = zip(parts, others or [{}] * len(parts), strict=True)
        methods = [_method(part, extra) for part, extra in pairs]
    if our_heads:
        types = [registry.find(extra["name"]).files.peft_type for extra in our_heads]
        typed = zip(types, our_heads, strict=True)
        return [*methods, *(_method({"peft_type": kind}, extra) for kind, extra in typed)]
    by_token = config.get("task_type") == "TOKEN_CLS"
    return [*methods, *(_head(name, tensors, by_token=by_token) for name in heads)]


def _head(name: str, tensors: Tensors, *, by_token: bool) -> Method:
    """Return the task head of a file of PEFT; its shape is that of its tensor."""
    weight = _head_weight(name, tensors)
    if weight is None:
        raise AdapterError(
            f"the head {name!r} is not in the file",
            f"a tensor {INSIDE}.{name}.weight",
            "load the base with its own classification head",
        )
    row = "last" if name == "score" else "first"
    settings = {"num_labels": len(weight), "pool": "none" if by_token else row}
    return _understood(registry.find("task_head"), settings)


def _head_weight(name: str, tensors: Tensors) -> torch.Tensor | None:
    keys = (f"{root}.{name}.weight" for root in (INSIDE, BESIDE))
    return next((tensors[key] for key in keys if key in tensors), None)


def _method(config: Settings, extra: Settings) -> Method:
    """Return the method that a config describes. Refuse unknown settings that would change the result."""
    cls = _owner(config)
    if cls is None:
        known = sorted({known.files.peft_type for known in _known()})
        raise AdapterError(
            f"peft_type {config.get('peft_type')!r} is not known here",
            f"one of {', '.join(known)}",
            "train it again with one of these methods",
        )
    known_fields = {f.name for f in fields(cls)}
    harmless = known_fields | SILENT | cls.files.idle
    ignored = {k: v for k, v in config.items() if k not in harmless and v not in (None, False, [], {}, "")}
    if ignored:
        shown = ", ".join(f"{k}={v!r}" for k, v in ignored.items())
        raise AdapterError(
            f"the adapter uses {shown}",
            f"settings of {cls.__name__} that Graft knows",
            "load it with the tool that wrote it",
        )
    settings = {k: _frozen(v) for k, v in {**config, **extra}.items() if k in known_fields and v is not None}
    rank = settings.get("r", 1)
    lowest = cls.files.lowest_rank
    if not isinstance(rank, int) or not lowest <= rank <= MAX_RANK:
        raise AdapterError(
            f"r={rank!r}",
            f"a rank from {lowest} to {MAX_RANK}",
            "this file is damaged or hostile: do not use it",
        )
    return _understood(cls, settings)


def _understood(cls: type[Method], settings: Settings) -> Method:
    method: Method = cls.files.understand(cls, settings)
    return method


def _owner(config: Settings) -> type[Method] | None:
    """Return the method whose marks a config bears, or else the one whose type it names."""
    marked = [c for c in _known() if c.files.is_marked(config)]
    named = [c for c in _known() if c.files.peft_type == config.get("peft_type")]
    return next(iter(marked + named), None)


def _known() -> list[type[Method]]:
    return [registry.find(name) for name in registry.names()]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
