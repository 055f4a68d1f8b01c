"""Read files of the `adapters` library, translated into PEFT's layout, or ours if PEFT has no such method.

    adapter_config.json    {"config": {its settings}, "name": NAME, "version": "adapters.1.3.0", ...}
    adapter.safetensors    PATH.adapters.NAME.adapter_down.0.weight (m, d), .bias
                           PATH.adapters.NAME.adapter_up.weight (d, m), .bias;  PATH.adapters.NAME.scaling
                           Compacter: W_left, W_right, b in both, and shared_parameters.NAME.phm_rule
                           PATH.loras.NAME.lora_A (r, in), lora_B (out, r);  (IA)³: lora_B (out, 1) alone

PATH of a LoRA is the projection. PATH of a bottleneck is a module of the library's own blocks. Inside one
block, alphabetical order is the order in which they act: attention.output, output; attention_adapters,
cross_attention_adapters, output_adapters; layer.0, layer.1, layer.2. Layout of version 1.3; Poth et al. 2023
(2311.11077).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from graft.core.method import Method
from graft.core.site import Site
from graft.errors import AdapterError, notice

WEIGHTS = "adapter.safetensors"
# What these settings must be if a file states them: the library's own defaults.
BOTTLENECK = {
    "original_ln_after": True, "residual_before_ln": True, "ln_before": False, "ln_after": False,
    "use_gating": False, "inv_adapter": None, "stochastic_depth": 0.0, "phm_bias": True,
    "factorized_phm_W": True, "shared_W_phm": False, "shared_phm_rule": True, "factorized_phm_rule": False,
}  # fmt: skip
LOW_RANK = {"use_gating": False, "use_dora": False, "vera_d": None, "vera_b": None}
# Settings that have no effect after training, that the tensors show, or that have chosen the method.
IDLE = {
    "architecture", "composition_mode", "is_parallel", "phm_layer", "phm_dim", "phm_rank", "phm_init_range",
    "phm_c_init", "learn_phm", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
    "inv_adapter_reduction_factor", "adapter_residual_before_ln", "attn_matrices", "selfattn_lora",
    "intermediate_lora", "output_lora", "leave_out", "dtype",
}  # fmt: skip
SCALED_RIGHT = (1, 1)  # the version from which on a LoRA is scaled by α / r, as its settings say
HINT = "load it with the `adapters` library"

Settings = dict[str, Any]
Named = dict[tuple[str, str], Tensor]  # by path and the rest of the key; the path is "" for shared parameters


def translated(
    facts: Settings, tensors: dict[str, Tensor], sites: Sequence[Site], candidates: Sequence[type[Method]]
) -> tuple[Settings, dict[str, Tensor]]:
    """Return `adapter_config.json` and tensors as PEFT, or we, would have written them for this base.

    candidates: the methods that a file may mean.  Raises AdapterError.
    """
    settings, name = facts.get("config"), facts.get("name")
    if not isinstance(settings, dict) or not isinstance(name, str):
        raise AdapterError(
            "an adapter_config.json without config or name", "both", "copy it again from where it came"
        )
    kind = settings.get("architecture")
    if kind is None:
        return _bottlenecks(settings, _named(tensors, "adapters", name), sites, candidates)
    if kind == "lora":
        return _low_rank(settings, _named(tensors, "loras", name), sites, str(facts.get("version")))
    raise AdapterError(f"an adapter of the kind {kind!r}", "a bottleneck, LoRA or (IA)³", HINT)


def warn_of_head(folder: Path) -> None:
    """Warn if a prediction head lies next to the adapter: it is not read."""
    if (folder / "head_config.json").exists():
        notice(f"{folder}: the prediction head is not read; train one anew as task_head")


def _bottlenecks(
    settings: Settings, tensors: Named, sites: Sequence[Site], candidates: Sequence[type[Method]]
) -> tuple[Settings, dict[str, Tensor]]:
    cls = _method(settings, candidates)
    known = {f.name: settings[f.name] for f in fields(cls) if settings.get(f.name) is not None}
    _check(settings, BOTTLENECK, known)
    try:
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        method = cls.files.understand_library(cls, frozen, sites)
        places = [site.name for site, _ in method.assemble(sites)]
    except (TypeError, ValueError, AttributeError) as error:
        raise AdapterError(
            f"settings that cannot be: {error}",
            "those of a trained adapter",
            "copy it again from where it came",
        ) from error
    paths = sorted({path for path, _ in tensors if path}, key=lambda path: (_block(path, sites), path))
    if len(paths) != len(places):
        raise AdapterError(
            f"bottlenecks at {len(paths)} places ({', '.join(paths[:3])})",
            f"the {len(places)} places that its settings mean on this base",
            "load the base that it was trained on",
        )
    moved = {"": "base_model"} | {
        p: f"base_model.model.{place}" for p, place in zip(paths, places, strict=True)
    }
    ours = {f"{moved[path]}.{part.replace('_down.0.', '_down.')}": t for (path, part), t in tensors.items()}
    return {"peft_type": cls.files.peft_type, **method.config()}, ours


def _low_rank(
    settings: Settings, tensors: Named, sites: Sequence[Site], version: str
) -> tuple[Settings, dict[str, Tensor]]:
    scales = settings.get("composition_mode") == "scale"
    _check(
        settings,
        LOW_RANK | ({"r": 1, "alpha": 1} if scales else {"composition_mode": "add"}),
        ("r", "alpha", "dropout"),
    )
    places = {path: _projection(path, sites) for path, _ in tensors}
    common = {"target_modules": sorted(places.values())}
    parts = {"lora_B": "ia3_l"} if scales else {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    ours = {
        f"base_model.model.{places[path]}.{parts.get(part, part)}": t for (path, part), t in tensors.items()
    }
    if scales:
        return {"peft_type": "IA3", "feedforward_modules": [], **common}, ours
    number = re.match(r"adapters\.(\d+)\.(\d+)", version)
    as_stated = number is None or (int(number[1]), int(number[2])) >= SCALED_RIGHT
    alpha = settings.get("alpha" if as_stated else "r")
    low_rank = {"r": settings.get("r"), "lora_alpha": alpha, "lora_dropout": settings.get("dropout")}
    return {"peft_type": "LORA", **low_rank, **common}, ours


def _named(tensors: dict[str, Tensor], group: str, name: str) -> Named:
    """Return the tensors by path and part.

    Raises AdapterError for another group, such as an invertible adapter's.
    """
    named: Named = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:(.*)\.{group}|(?:.*\.)?shared_parameters)\.{re.escape(name)}\.(.*)", key)
        if match is None:
            raise AdapterError(f"the tensor {key}", f"PATH.{group}.{name}.NAME", HINT)
        named[match[1] or "", match[2]] = tensor
    return named


def _method(settings: Settings, candidates: Sequence[type[Method]]) -> type[Method]:
    """Return the candidate whose marks the settings bear. Raises AdapterError if none does."""
    for cls in candidates:
        if cls.files.is_marked_by_library(settings):
            return cls
    shown = ", ".join(f"{key}={settings[key]!r}" for key in ("is_parallel", "phm_layer") if settings.get(key))
    raise AdapterError(
        f"a bottleneck with {shown}", "one of Houlsby's, Pfeiffer's, parallel's or Compacter's kind", HINT
    )


def _check(settings: Settings, required: Settings, known: Iterable[str]) -> None:
    """Refuse settings that would change the result and are not known here."""
    harmless = {*known, *IDLE} - required.keys()
    wrong = {
        key: value
        for key, value in settings.items()
        if key not in harmless and value not in (None, required.get(key, False))
    }
    if wrong:
        shown = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise AdapterError(f"the adapter uses {shown}", "settings that Graft knows", HINT)


def _block(path: str, sites: Sequence[Site]) -> int:
    """Return the number of the block that a path of the library lies in, through all stacks."""
    prefix = sites[0].root.base_model_prefix + "."
    blocks = [site.name.removeprefix(prefix) for site in sites if site.kind == "block"]
    number = next((number for number, block in enumerate(blocks) if f".{block}." in f".{path}."), None)
    if number is None:
        raise _elsewhere(path)
    return number


def _projection(path: str, sites: Sequence[Site]) -> str:
    """Return the name of the projection that a path of the library means.

    One of the two names may have the prefix of a model with a head.
    """
    linears = [site.name for site in sites if site.kind == "linear"]
    same = [name for name in linears if f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}")]
    if not same:
        raise _elsewhere(path)
    return same[0]


def _elsewhere(path: str) -> AdapterError:
    return AdapterError(
        f"{path!r} is not in this base", "the places of its blocks", "load the base it was trained on"
    )
