"""PEFT's files of mixtures whose experts were linears of their own, as they were before transformers 5.

    experts.E.w1, .w3, .w2  or  experts.E.gate_proj, .up_proj, .down_proj    A (r, in), B (out, r) of each

Gate and up are one matrix now: their update has twice the rank, A = [A_gate; A_up], B block by block, and
twice the alpha (√2 times with rsLoRA), so that its scale stays. A router that was a linear is a parameter.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from graft.core.site import Site
from graft.errors import AdapterError, listed

ROOT = "base_model.model."
HALVES = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1}
EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.lora_(A|B)\.weight")

Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Found = dict[tuple[int, int], torch.Tensor]  # (number of the expert, half of the matrix)


def stacked(config: Settings, tensors: Tensors, sites: Sequence[Site]) -> tuple[Settings, Tensors]:
    """Return config and tensors as PEFT writes them for stacked experts; others pass untouched.

    Raises AdapterError if an expert lacks a part, or experts have different ranks.
    """
    owners = {s.path: s for s in sites if s.kind == "parameter" and s.leaf in ("gate_up_proj", "down_proj")}
    found: dict[tuple[str, str, str], Found] = {}
    rest = {}
    for key, tensor in tensors.items():
        old = EXPERT.fullmatch(key)
        if old is None or not owners:
            rest[_renamed(key, owners)] = tensor
            continue
        block, expert, name, side = old.groups()
        leaf = "gate_up_proj" if name in HALVES else "down_proj"
        place = found.setdefault((_renamed(f"{block}.experts", owners), leaf, side), {})
        place[int(expert), HALVES.get(name, 0)] = tensor
    if not found:
        return config, tensors
    names = {(path.removeprefix(ROOT), leaf) for path, leaf, _ in found}
    both = {path for path, leaf in names if (path, "down_proj") in names}
    for (path, leaf, side), parts in found.items():
        inside = "base_layer." if leaf == "gate_up_proj" and path.removeprefix(ROOT) in both else ""
        rest[f"{path}.{inside}lora_{side}.weight"] = _joined(path, leaf, side, parts)
    return _settings(config, rest, names, sites), rest


def _renamed(key: str, owners: dict[str, Site]) -> str:
    """Return a key with today's name of its feed-forward part: Mixtral's was `block_sparse_moe`."""
    new = key.replace(".block_sparse_moe.", ".mlp.")
    return new if any(new.startswith(f"{ROOT}{path.rpartition('.')[0]}.") for path in owners) else key


def _joined(path: str, leaf: str, side: str, parts: Found) -> torch.Tensor:
    """Return the A or B of all experts of one parameter."""
    count, halves = 1 + max(e for e, _ in parts), 2 if leaf == "gate_up_proj" else 1
    missing = None
    if count * halves != len(parts):  # there is one that is not among as many as there are, and one more
        among = ((e, half) for e in range(len(parts) + 1) for half in range(halves))
        missing = next(place for place in among if place not in parts)
    shapes = {tensor.shape for tensor in parts.values()}
    if missing or len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise AdapterError(
            f"{path}.{leaf}: "
            + (f"expert {missing[0]} lacks a part" if missing else f"shapes {listed(shapes)}"),
            "an update of every expert's gate, up and down projection, all of one rank",
            "train it again with target_parameters",
        )
    each = [[parts[e, half] for half in range(halves)] for e in range(count)]
    if side == "A":
        return torch.cat([A for of_expert in each for A in of_expert])
    B = torch.stack([torch.block_diag(*of_expert) for of_expert in each])  # (E, out, r)
    return B.permute(1, 2, 0).flatten(1).contiguous()


def _settings(
    config: Settings, tensors: Tensors, names: set[tuple[str, str]], sites: Sequence[Site]
) -> Settings:
    """Return the config of these tensors: what they belong to by name, twice the rank at `gate_up_proj`."""
    growth = math.sqrt(2) if config.get("use_rslora") else 2
    trained = {key.removeprefix(ROOT).removesuffix(".lora_A.weight") for key in tensors}
    modules = sorted(s.name for s in sites if s.kind in ("linear", "head") and s.name in trained)
    routers = [s.name for s in sites if s.kind == "parameter" and s.leaf == "weight" and s.path in trained]
    fused = r".*\.gate_up_proj"
    return config | {
        "target_modules": modules,
        "target_parameters": [*sorted(f"{path}.{leaf}" for path, leaf in names), *routers],
        "rank_pattern": {fused: 2 * config.get("r", 8), **(config.get("rank_pattern") or {})},
        "alpha_pattern": {fused: growth * config.get("lora_alpha", 8), **(config.get("alpha_pattern") or {})},
        "lora_dropout": 0.0,  # over when training is, and none on parameters
    }
