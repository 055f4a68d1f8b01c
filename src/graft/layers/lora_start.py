"""Where a LoRA starts: the factors A and B at birth, for every `init_lora_weights`.

true       A uniform in ±1/√in (Kaiming, a = √5), B = 0        gaussian   A normal with deviation 1/r, B = 0
pissa      √(S/s)·V and U·√(S/s) of the r largest singular values; pissa_niter_N by N power iterations
olora      R and Q of W = QR, first r rows and columns
loftq      the same two roots of W − Ŵ, W read again from the checkpoint
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open

from graft.core.site import Site
from graft.errors import ModelError, UsageError

Start = bool | str


def check(init: Start) -> None:
    """Raise UsageError for a start that is not known."""
    if isinstance(init, str) and not re.fullmatch(r"gaussian|pissa(_niter_\d+)?|olora|loftq", init):
        raise UsageError(
            f"init_lora_weights={init!r}",
            "true, gaussian, pissa, pissa_niter_N, olora or loftq",
            "leave it out",
        )


def subtracts(init: Start) -> bool:
    """Return whether the start is a part of W₀ that the forward must subtract again."""
    return isinstance(init, str) and init.startswith(("pissa", "olora"))


def factors(site: Site, r: int, scale: float, init: Start) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, in) and B (out, r) at birth, in fp32."""
    rows, columns = site.out_features, site.in_features
    if isinstance(init, bool) or init == "gaussian":
        bound = columns**-0.5
        A = torch.empty(r, columns)
        A = A.normal_(std=1 / r) if init == "gaussian" else A.uniform_(-bound, bound)
        return A, torch.zeros(rows, r)
    weight = site.weight().detach().float()
    if init == "loftq":
        weight = original(site).float() - weight
    return decomposed(weight, r, scale, str(init))


def decomposed(weight: torch.Tensor, r: int, scale: float, init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B with s·B A near a weight (out, in) in fp32, by the decomposition that `init` names."""
    if init == "olora":
        Q, R = torch.linalg.qr(weight)
        return R[:r].clone(), Q[:, :r].clone()
    if init.startswith("pissa_niter_"):
        U, S, V = torch.svd_lowrank(weight, q=r, niter=int(init.rpartition("_")[2]))
        Vt = V.T
    else:
        U, S, Vt = torch.linalg.svd(weight, full_matrices=False)
    root = (S[:r] / scale).sqrt()
    return root[:, None] * Vt[:r], U[:, :r] * root


def original(site: Site) -> torch.Tensor:
    """Return the weight (out, in) as the checkpoint has it, before it was quantised. Raises ModelError."""
    folder = Path(getattr(site.root.config, "name_or_path", "") or ".")
    prefix = getattr(site.root, "base_model_prefix", "") + "."
    wanted = {
        f"{site.name}.weight",
        f"{site.name.removeprefix(prefix)}.weight",
        f"{prefix}{site.name}.weight",
    }
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in wanted & set(file.keys()):
                weight = file.get_tensor(key)
                same = weight.shape == (site.out_features, site.in_features)
                return weight if same else weight.T
    raise ModelError(
        f"the original weight of {site.name} was not found in {folder}",
        "the 16-bit checkpoint that the quantised base was made from, as safetensors",
        "load the base from that folder with quant=, or use init_lora_weights=true",
    )
