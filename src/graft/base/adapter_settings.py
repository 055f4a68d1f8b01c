"""Adapter settings: which methods the settings of a file mean.

Every setting of PEFT's configs is honoured, known to have no effect on what an adapter answers, or refused by
name; `tests/formats/test_peft_settings.py` walks them. A setting that nobody knows, of a newer version, is
refused unless it is off, and even then it is named.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from graft.base.adapter_checks import HOSTILE, stated
from graft.core import registry
from graft.core.method import Method
from graft.core.site import Site
from graft.errors import AdapterError, listed, notice
from graft.formats.peft import Settings, Tensors

MIXED = "GRAFT_MIX"
HEADS = ("score", "classifier")
INSIDE = "base_model.model"  # what keys start with, for methods inside the model
BESIDE = "base_model"  # and for methods that PEFT stores outside it
# Keys of PEFT that say where an adapter came from, how it started and how the base stores its matrices. They
# have no part in what it answers, in any of PEFT's methods.
SILENT = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_weights",
    "peft_type", "peft_version", "revision", "runtime_config", "task_type",
}  # fmt: skip


def methods_of(
    config: Settings, named: list[Settings], tensors: Tensors, sites: Sequence[Site]
) -> list[Method]:
    """Return the methods of a config.

    PEFT saves a task head as one of `modules_to_save`: a name there is a head if the base has no such module.
    named: by method, its name and the settings that PEFT does not know; empty if Graft did not write it.
    """
    parts = [dict(part) for part in (config.get("methods") or [] if mixed(config) else [config])]
    if not parts:
        raise AdapterError("the file is of a mix of no methods", "the settings of its methods", HOSTILE)
    saved = list(parts[0].get("modules_to_save") or [])
    present = [name for name in HEADS if _head_weight(name, tensors) is not None]
    if present:  # PEFT lists both names, whichever the model has
        saved = [name for name in saved if name not in HEADS or name in present]
    modules = {name for name, _ in sites[0].root.named_modules()}
    heads = [name for name in HEADS if name in saved and name not in modules]  # PEFT may list a name twice
    if saved:
        parts[0]["modules_to_save"] = [name for name in saved if name not in heads]
    our_heads = [extra for extra in named if registry.find(extra["name"]).is_head()]
    others = [extra for extra in named if extra not in our_heads]
    methods: list[Method] = []
    if others or not our_heads:  # else it is a linear probe: a head and nothing else
        pairs = _pairs(parts, others)
        methods = [_method(part, extra, sites) for part, extra in pairs]
    if our_heads:
        types = [registry.find(extra["name"]).files.peft_type for extra in our_heads]
        typed = zip(types, our_heads, strict=True)
        return [*methods, *(_method({"peft_type": kind}, extra, sites) for kind, extra in typed)]
    by_token = config.get("task_type") == "TOKEN_CLS"
    return [*methods, *(_head(name, tensors, by_token=by_token) for name in heads)]


def _pairs(parts: list[Settings], named: list[Settings]) -> list[tuple[Settings, Settings]]:
    """Return each method's settings in PEFT's file and in ours."""
    if named and len(named) != len(parts):
        raise AdapterError(
            f"the file names {len(named)} methods and has the settings of {len(parts)}",
            "the settings of every method",
            HOSTILE,
        )
    return list(zip(parts, named or [{}] * len(parts), strict=True))


def _head(name: str, tensors: Tensors, *, by_token: bool) -> Method:
    """Return the task head of a file of PEFT; its shape is that of its tensor."""
    weight = _head_weight(name, tensors)
    if weight is None or weight.ndim != 2:
        raise AdapterError(
            f"the head {name!r} is not in the file, or no matrix",
            f"a tensor {INSIDE}.{name}.weight",
            "load the base with its own classification head",
        )
    row = "last" if name == "score" else "first"
    settings = {"num_labels": len(weight), "pool": "none" if by_token else row}
    return _understood(registry.find("task_head"), settings)


def _head_weight(name: str, tensors: Tensors) -> torch.Tensor | None:
    keys = (f"{root}.{name}.weight" for root in (INSIDE, BESIDE))
    return next((tensors[key] for key in keys if key in tensors), None)


def _method(config: Settings, extra: Settings, sites: Sequence[Site]) -> Method:
    """Return the method that a config describes. Refuse unknown settings that would change the result."""
    cls = owner_of(config)
    if cls is None:
        known = sorted({known.files.peft_type for known in known_methods()})
        raise AdapterError(
            f"peft_type {config.get('peft_type')!r} is not known here",
            f"one of {', '.join(known)}",
            "train it again with one of these methods",
        )
    known_fields = {f.name for f in fields(cls)}
    _check_rest(cls, {k: v for k, v in config.items() if k not in known_fields | SILENT | cls.files.idle})
    given = {**config, **extra}
    absent = {} if extra else {k: v for k, v in cls.files.absent.items() if given.get(k) is None}
    given = stated(cls, given, sites)
    settings = {k: _frozen(v) for k, v in {**absent, **given}.items() if k in known_fields}
    return _understood(cls, settings)


def _check_rest(cls: type[Method], rest: Settings) -> None:
    """Raise AdapterError for settings that Graft does not have; say which unknown ones are off.

    rest: those of a file that are neither honoured nor idle.
    """
    off = [k for k, v in rest.items() if v is None or v is False or v in ([], {}, "")]
    used = {k: v for k, v in rest.items() if k not in off}
    if used:
        shown = ", ".join(f"{k}={v!r}" for k, v in used.items())
        raise AdapterError(
            f"the adapter uses {shown}",
            f"settings of {cls.__name__} that Graft knows",
            "load it with the tool that wrote it",
        )
    unknown = sorted(k for k in off if k not in cls.files.refused)
    if unknown:
        notice(f"settings of the adapter that Graft does not know, all of them off: {listed(unknown, 8)}")


def _understood(cls: type[Method], settings: Settings) -> Method:
    method: Method = cls.files.understand(cls, settings)
    return method


def mixed(config: Settings) -> bool:
    """Return whether a config is of several methods."""
    return config.get("peft_type") == MIXED


def owner_of(config: Settings) -> type[Method] | None:
    """Return the method whose marks a config bears, or else the one whose type it names."""
    known = known_methods()
    marked = [c for c in known if c.files.is_marked(config)]
    named = [c for c in known if c.files.peft_type == config.get("peft_type")]
    return next(iter(marked + named), None)


def known_methods() -> list[type[Method]]:
    """Return all methods."""
    return [registry.find(name) for name in registry.names()]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
