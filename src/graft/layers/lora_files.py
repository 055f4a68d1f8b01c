"""LoRA's files: PEFT's config, and how what PEFT computes while it reads one is done here.

    y = (W − s·B₀A₀) x + s·B A x        a start that PEFT takes out of the base's own weight, again on reading
      = W x + s·[B, −B₀] [A; A₀] x      so here it is a plain LoRA of rank 2r, and the base stays as it is

A₀ and B₀ come from W alone where `init_lora_weights` is pissa or olora. Those of corda, lora_ga and loftq
come from data, gradients or a rounding of W that no file holds; those of pissa_niter_N are drawn at random.
Such files are refused unless PEFT has converted them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graft.core.file_layout import Settings, Tensors
from graft.core.part import Part
from graft.core.site import Site
from graft.errors import AdapterError
from graft.layers import lora_start as start
from graft.layers.expert_lora import peft_targets
from graft.layers.replacements import Replacement
from graft.layers.targets import TargetedFiles, by_pattern, matches, scale_from
from graft.layers.tied import TiedReplacement, tied_heads
from graft.layers.token_rows import BESIDE as ROWS
from graft.layers.token_rows import ids_at, without
from graft.quant import is_packed

ROOT = "base_model.model."
TABLES = ("embed_tokens", "lm_head")  # names by which PEFT recognises what it ties
DEFAULTS = {"r": 8, "lora_alpha": 8}  # PEFT's
TABLE_A, TABLE_B = "lora_embedding_A", "lora_embedding_B"
INDICES = "trainable_token_indices"
A, B, LAYER = "lora_A.weight", "lora_B.weight", "base_layer.weight"
# Starts that leave the base as it is, so that nothing of them is left but the tensors.
LEAVING = (True, False, "gaussian", "eva", "orthogonal", "mica")
# They start a training or change its steps, and have no part in the answers of what it made.
TRAINING = frozenset(
    {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config"}
)
# What PEFT's LoRA can do and this one cannot.
REFUSED = frozenset({
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "layer_replication",
        "megatron_config",
        "use_bdlora",
        "use_qalora",
})  # fmt: skip
# What LoRA has and its kin, which share PEFT's config, have not.
FURTHER = frozenset({
    "alpha_pattern", "ensure_weight_tying", "lora_bias", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip


class LoRAFiles(TargetedFiles):
    """PEFT's config. PiSSA and OLoRA are written as the LoRA of rank 2r that they are.

    The start is left out: it is in the tensors.
    """

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        config = super().describe(method, part)
        if start.subtracts(method.init_lora_weights):
            config |= doubled(config)
        if method.ensure_weight_tying:
            config |= _as_peft_ties(config, part)
        config |= peft_targets(method, part)
        tokens = config["trainable_token_indices"]
        return config | {"init_lora_weights": True, "trainable_token_indices": tokens or None}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        if settings.get("target_parameters"):  # these may be all: PEFT then names no modules
            settings = {"target_modules": (), **settings}
        return cls(**{**settings, "init_lora_weights": True})

    def convert(self, config: Settings, tensors: Tensors, sites: Sequence[Site]) -> tuple[Settings, Tensors]:
        if config.get("ensure_weight_tying") and not any(_at(tensors, head) for head in tied_heads(sites)):
            config = config | {"ensure_weight_tying": False}  # PEFT ties by the table's name: not this one
        init = config.get("init_lora_weights", True)
        if init in ("pissa", "olora"):
            return _subtracted(config, tensors, sites, init)
        refuse_start(init)
        return _folded(config, tensors, sites)


def refuse_start(init: Any) -> None:
    """Raise AdapterError for a start that PEFT takes out of the base's weights and no file can give back."""
    if init not in LEAVING:
        raise AdapterError(
            f"the adapter was saved with init_lora_weights={init!r}: it was trained on a base whose weights "
            "this start had changed, and its file does not say how",
            "an adapter converted to plain LoRA, or one that starts from true, gaussian, pissa or olora",
            "convert it where it was trained: model.save_pretrained(FOLDER, "
            "path_initial_model_for_weight_conversion=...); if the base at hand is the changed one, "
            "set init_lora_weights to true in adapter_config.json",
        )


def doubled(config: Mapping[str, Any]) -> Settings:
    """Return the ranks and alphas of a LoRA of twice the rank and the same scale."""
    growth = math.sqrt(2) if config.get("use_rslora") else 2
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    return {
        "r": 2 * config["r"],
        "rank_pattern": {k: 2 * v for k, v in ranks.items()},
        "lora_alpha": growth * config["lora_alpha"],
        "alpha_pattern": {k: growth * v for k, v in alphas.items()},
    }


def scale_of(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Return rank and scale of the site of this name, as PEFT computes them from a config."""
    r = int(by_pattern(config.get("rank_pattern") or {}, name, config["r"]))
    alpha = float(by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"]))
    return r, scale_from(alpha, r, root=bool(config.get("use_rslora")))


def _folded(config: Settings, tensors: Tensors, sites: Sequence[Site]) -> tuple[Settings, Tensors]:
    """Return an adapter with trained copies of the tables that its file holds beside their LoRA.

    PEFT writes the table itself where it trains one, and reads it into the base. It is another one if the
    vocabulary grew. The copy has the update in it.
    """
    changed, folded, rows = dict(tensors), [], []
    for site in (site for site in sites if site.kind in ("embed", "head")):
        stem = f"{ROOT}{site.name}."
        parts = {key.removeprefix(stem): tensors[key].float() for key in tensors if key.startswith(stem)}
        table, factors = parts.pop(LAYER, None), (TABLE_A, TABLE_B) if site.kind == "embed" else (A, B)
        if table is None or table.shape != site.weight().shape or _near(table, site.weight(), exact=True):
            continue  # a copy of the base's, or of no use
        ids = ids_at(config.get(INDICES), site)
        if set(parts) == set(factors) and _form(parts[factors[0]], parts[factors[1]]) == sorted(table.shape):
            update = scale_of({**DEFAULTS, **config}, site.name)[1] * (parts[factors[1]] @ parts[factors[0]])
            update = update.T if site.kind == "embed" else update
            if update.shape != table.shape:
                continue
            table = table + update
        elif (
            set(parts) == {ROWS}
            and parts[ROWS].shape == table[: len(ids)].shape
            and max(ids, default=-1) < len(table)
        ):
            table = table.index_copy(0, torch.tensor(ids), parts[ROWS])
            rows.append(site)
        else:
            continue  # is reported with all that does not fit
        changed = {key: tensor for key, tensor in changed.items() if not key.startswith(stem)}
        changed[f"{stem}weight"] = table
        folded.append(site.name)
    if not folded:
        return config, tensors
    if rows:
        config = config | {INDICES: without(config[INDICES], rows)}
    targets = config.get("target_modules") or []
    if not isinstance(targets, str):
        targets = [entry for entry in targets if not any(matches(name, [entry]) for name in folded)]
    saved = [*(config.get("modules_to_save") or []), *folded]
    return config | {"modules_to_save": saved, "target_modules": targets}, changed


def _subtracted(
    config: Settings, tensors: Tensors, sites: Sequence[Site], init: str
) -> tuple[Settings, Tensors]:
    """Return a plain LoRA of rank 2r: with the start that PEFT would take out of the base."""
    places = {site.name: site for site in sites if site.kind in ("linear", "head")}
    trunk = f"{getattr(sites[0].root, 'base_model_prefix', '')}."
    config = {**DEFAULTS, **config}
    changed = dict(tensors)
    for key in [key for key in tensors if key.startswith(ROOT) and key.endswith(f".{A}")]:
        name = key.removeprefix(ROOT).removesuffix(f".{A}")
        site = next((places[n] for n in (name, name.removeprefix(trunk), trunk + name) if n in places), None)
        other = f"{ROOT}{name}.{B}"
        if site is None or other not in tensors:
            continue  # is reported with all that does not fit
        r, scale = scale_of(config, name)
        first, second = _start(site, r, scale, init)
        if first.shape != tensors[key].shape or second.shape != tensors[other].shape:
            continue
        kept = tensors.get(f"{ROOT}{name}.{LAYER}")
        if kept is not None and _near(kept, site.weight() - scale * (second @ first).to(site.weight())):
            del changed[f"{ROOT}{name}.{LAYER}"]  # PEFT writes what the start has left of a head
        changed[key] = torch.cat([tensors[key].float(), first])
        changed[other] = torch.cat([tensors[other].float(), -second], dim=1)
    sides = {"embedding_A": 0, "embedding_B": 1}  # the dimension of the rank
    tables = {
        key: torch.cat([tensor, torch.zeros_like(tensor)], sides[key[-11:]])
        for key, tensor in tensors.items()
        if key[-11:] in sides and tensor.ndim == 2
    }
    return config | doubled(config), changed | tables


def _form(first: torch.Tensor, second: torch.Tensor) -> list[int]:
    """Return the sorted shape of the product of two factors, or [] if they have none."""
    fit = first.ndim == second.ndim == 2 and len(first) == second.shape[1]
    return sorted((len(second), first.shape[1])) if fit else []


def _near(given: torch.Tensor, weight: torch.Tensor, *, exact: bool = False) -> bool:
    tolerances = (0.0, 0.0) if exact else (1e-3, 1e-4)
    return given.shape == weight.shape and torch.allclose(given.to(weight), weight, *tolerances)


def _start(site: Site, r: int, scale: float, init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A₀ and B₀ of the weight that the adapter was trained on: in 16 bits, if it is packed now."""
    if init == "olora" and site.transposed:
        raise AdapterError(
            f"init_lora_weights='olora' at {site.name}, which stores its weight transposed",
            "olora at ordinary linears: PEFT's start here is not what it takes out of the base",
            "train it again with another start",
        )
    weight = start.original(site) if is_packed(site.module) else site.weight()
    return start.decomposed(weight.detach().float().cpu(), r, scale, init)


def _as_peft_ties(config: Settings, part: Part) -> Settings:
    """Return settings with which PEFT puts on table and head what is there.

    PEFT ties tables that it knows by name. Any other table, and its head, are named apart: their tensors are
    equal.
    """
    saved = [site.name for site, insert in part.inserts if isinstance(insert, Replacement | TiedReplacement)]
    places = [site.name for site, insert in part.inserts if insert.low_rank() is not None]
    named = [*(config.get("modules_to_save") or []), *config["target_modules"]]
    if any(name.rpartition(".")[2] in TABLES for name in named) and not isinstance(named, str):
        return {}
    return {
        "ensure_weight_tying": False,
        "modules_to_save": sorted(saved) or None,
        "target_modules": sorted({*config["target_modules"], *places}),
    }


def _at(tensors: Tensors, site: Site) -> bool:
    return any(key.startswith(f"{ROOT}{site.name}.") for key in tensors)
