"""The three poolings that QA-LoRA is trained with: the same A and B mean another update in each.

    pooled_k = c/g · Σ_{i ∈ group k} x_i       G groups of g inputs; so A of pooling c is A·c/g of the sum
    sum            c = g     Xu et al. 2023 (2309.14717), algorithm 1, and here
    mean           c = 1     the authors' code; its merge divides by g
    mean_x_groups  c = G     PEFT's `use_qalora`

PEFT's files are recognised by `"use_qalora": true`. A file of the authors' code does not say how it pools:
add `"use_qalora": true`, `"qalora_pool": "mean"` and the `qalora_group_size` to its adapter_config.json.
"""

from collections.abc import Callable
from typing import Any

import torch

from graft.errors import AdapterError

# c of a pooling, from g and G.
POOLS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda size, count: size,
    "mean": lambda size, count: 1,
    "mean_x_groups": lambda size, count: count,
}


def as_sums(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], pool: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return config and tensors of a file that pools by `pool`, with the A of the sum."""
    if pool == "sum":
        return config, tensors
    size = config.get("qalora_group_size")
    if not isinstance(pool, str) or pool not in POOLS or not isinstance(size, int) or size < 1:
        raise AdapterError(
            f"qalora_pool={pool!r} with qalora_group_size={size!r}",
            f"one of {', '.join(POOLS)}, and a number",
            "ask the author how the adapter was trained",
        )
    first = {key: A for key, A in tensors.items() if key.endswith("lora_A.weight") and A.ndim == 2}
    summed = {key: A * (POOLS[pool](size, A.shape[1]) / size) for key, A in first.items()}
    return config | {"qalora_pool": "sum"}, tensors | summed
