"""Read adapters of mlx-lm, LoRA and DoRA, and translate them into PEFT's layout.

    adapter_config.json     fine_tune_type: lora | dora;  num_layers: n, the last n blocks (below 1: all);
                            lora_parameters: {rank, scale, dropout,
                                              keys: paths inside a block, or of the whole model}
    adapters.safetensors    PATH.lora_a (in, r), for a table (ids, r);  PATH.lora_b (r, out)
                            DoRA: PATH.m (out,)

    y = W x + b + s·Bᵀ Aᵀ x        s = scale, whatever the rank
    DoRA:                          W' = m/‖W + s·BᵀAᵀ‖ ⊙ (W + s·BᵀAᵀ) by rows

mlx-lm puts an adapter where the settings say, and reads from the file what it has for these places. A file
with other places is refused here. `alpha` is in many files, but no version that writes num_layers reads it.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from graft.core.schema import Rank, Scale, fits, in_words, shown
from graft.core.site import Site
from graft.errors import AdapterError

WEIGHTS = "adapters.safetensors"
# The parts of a place, by fine_tune_type.
KINDS = {"lora": {"lora_a", "lora_b"}, "dora": {"lora_a", "lora_b", "m"}}
PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
TABLE = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
PARAMETERS = {"rank", "scale", "dropout", "keys", "alpha"}
ELSEWHERE = "load the base it was trained on"
HINT = "fuse it into its base with mlx_lm.fuse, and load that"

Settings = dict[str, Any]
Places = dict[str, tuple[Site, dict[str, Tensor]]]  # name in this base -> (site, {part: tensor})


def translated(
    facts: Settings, tensors: dict[str, Tensor], sites: Sequence[Site]
) -> tuple[Settings, dict[str, Tensor]]:
    """Return `adapter_config.json` and tensors as PEFT would have written them for this base.

    Raises AdapterError.
    """
    kind = facts.get("fine_tune_type", "lora")
    parameters = facts.get("lora_parameters")
    last: Any = facts.get("num_layers")
    if not isinstance(kind, str) or kind not in KINDS:
        raise AdapterError(f"fine_tune_type {kind!r}", "lora or dora", HINT)
    if not isinstance(parameters, dict) or not fits(last, int):
        raise AdapterError(
            "settings without lora_parameters or num_layers", "both", "train it with a later mlx-lm"
        )
    unknown = sorted(parameters.keys() - PARAMETERS)
    if unknown:
        raise AdapterError(f"lora_parameters with {', '.join(unknown)}", "settings that Graft knows", HINT)
    r: Any = parameters.get("rank")
    scale: Any = parameters.get("scale")
    keys: Any = parameters.get("keys")
    if not fits(r, Rank) or not fits(scale, Scale) or not fits(keys, tuple[str, ...] | None):
        given = f"rank {shown(r)}, scale {shown(scale)} and keys {shown(keys)}"
        expected = f"{in_words(Rank)}, {in_words(Scale)} and a list of names"
        raise AdapterError(given, expected, "copy it again from where it came")
    known = {site.name: site for site in sites if site.kind in ("linear", "head", "embed")}
    places = _by_place(tensors, known)
    for name, (site, parts) in places.items():
        _check_parts(f"{kind} on {name}", site, parts, KINDS[kind], r)
    _check_places(places, known, keys, [site for site in sites if site.kind == "block"], last)
    ours = {}
    for site, parts in places.values():
        for part, tensor in parts.items():
            name = (TABLE if site.kind == "embed" else PARTS)[part]
            ours[f"base_model.model.{site.name}.{name}"] = tensor.T if tensor.dim() == 2 else tensor
    settings = {
        "r": r,
        "lora_alpha": scale * r,
        "lora_dropout": parameters.get("dropout"),
        "use_dora": kind == "dora",
    }
    return {"peft_type": "LORA", **settings, "target_modules": sorted(places)}, ours


def _by_place(tensors: dict[str, Tensor], known: dict[str, Site]) -> Places:
    """Return the tensors by place. Raises AdapterError for one that belongs to no place of this base."""
    places: Places = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.(lora_a|lora_b|m)", key)
        if match is None or tensor.dim() != (1 if match[2] == "m" else 2):
            given = f"the tensor {key} {tuple(tensor.shape)}"
            raise AdapterError(given, "lora_a, lora_b and m of projections", HINT)
        without_head = match[1].partition(".")[2]  # a backbone alone has one word less
        site = known.get(match[1]) or known.get(without_head)
        if site is None:
            raise AdapterError(f"{match[1]!r} is not in this base", "its projections", ELSEWHERE)
        places.setdefault(site.name, (site, {}))[1][match[2]] = tensor
    return places


def _check_parts(what: str, site: Site, parts: dict[str, Tensor], wanted: set[str], r: int) -> None:
    """Refuse a place that is incomplete or of another rank, and a table that is also the head."""
    if parts.keys() != wanted:
        raise AdapterError(f"{what} with {', '.join(sorted(parts))}", ", ".join(sorted(wanted)), HINT)
    if site.kind == "embed" and ("m" in wanted or site.root.config.tie_word_embeddings):
        raise AdapterError(what, "LoRA on a table that is not the head, too", HINT)
    ranks = (parts["lora_a"].shape[1], len(parts["lora_b"]))
    if ranks != (r, r):
        raise AdapterError(f"{what} of rank {ranks[0]}", f"rank {r}", "copy it again from where it came")


def _check_places(
    places: Places, known: dict[str, Site], keys: list[str] | None, blocks: Sequence[Site], last: int
) -> None:
    """Refuse places other than those of the settings: mlx-lm would leave them out, or it was another base."""
    fronts = {block.layer: f"{block.name}." for block in blocks}
    first = max(0, len(blocks) - last) if last > 0 else 0
    inside = {name: name.removeprefix(fronts.get(site.layer, "")) for name, site in known.items()}
    wanted = set(keys or (inside[name] for name in places))
    meant = {n for n, s in known.items() if inside[n] in wanted and (s.layer is None or s.layer >= first)}
    odd = sorted(meant ^ places.keys())
    if odd or not places:
        given = (
            f"{odd[0]} is {'not ' if odd[0] in meant else ''}in the file" if odd else "a file without tensors"
        )
        expected = f"{', '.join(sorted(wanted))} of blocks {first} to {len(blocks) - 1}"
        raise AdapterError(f"{given} ({len(odd)} places differ)", expected, ELSEWHERE)
