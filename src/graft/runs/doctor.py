"""Check this machine, and whether torch and transformers behave as Graft relies on: `graft doctor`.

With `--bench` the machine's speed is measured too (`kernels.measure`); `dtype: auto` follows it.

Each check runs on a two-layer model and takes a fraction of a second. If a new version of a library breaks a
promise, the check of that promise fails.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from graft.base.base import Base
from graft.core.registry import described
from graft.kernels import REFERENCE, native
from graft.kernels import find as kernel
from graft.kernels.measure import Profile
from graft.models.dtype import choose
from graft.models.fresh import fresh
from graft.objectives.lm import language_modelling
from graft.planning.machine import memory
from graft.quant import Scheme, quantise_model
from graft.sizes import size
from graft.storage import free_bytes

LIBRARIES = (
    "graftlm",
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "pydantic",
    "typer",
    "rich",
    "filelock",
)
EXTRAS = {"pyarrow": "Parquet data", "datasets": "data from the hub"}
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Check:
    """One promise.  trouble: what was seen instead; empty if it holds."""

    name: str
    trouble: str


def examine() -> tuple[dict[str, str], list[Check]]:
    """Return the facts of this machine, and all checks."""
    return _facts(), [Check(name, _trouble(check)) for name, check in CHECKS.items()]


def _facts() -> dict[str, str]:
    free, _, _ = memory()
    gpu = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none, training runs on the processor"
    )
    facts = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    facts |= {"tested": _tested()}
    facts |= {name: _version(name) or "missing" for name in LIBRARIES}
    facts |= {name: _version(name) or f"not installed (for {purpose})" for name, purpose in EXTRAS.items()}
    facts |= {"processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used", "gpu": gpu}
    facts |= {"memory": f"{size(free)} free", "disk": f"{size(free_bytes(Path()))} free here"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts |= {"dtype": f"auto is {choose(device)}"}
    return facts | {"kernels": _kernels(device)}


def _tested() -> str:
    """Say whether Graft's tests run on systems of this kind."""
    system, machine = platform.system(), platform.machine().lower()
    if system == "Linux" and machine in ("x86_64", "amd64"):
        return "yes, on Linux x86-64"
    return (
        f"on Linux x86-64 only; {system or 'this system'} {machine} should work, but was not tried".replace(
            "  ", " "
        )
    )


def _kernels(device: str) -> str:
    """Say which kernels work here, and how the operations without one are done."""
    if device == "cpu" and not native.levels():
        return "torch's reference: no C compiler was here when graft was installed"
    if device == "cpu":
        return f"C, level {native.level()} (of {', '.join(native.levels())})"
    ours = [name for name, plain in REFERENCE.items() if kernel(name, device) is not plain]
    rest = len(REFERENCE) - len(ours)
    return f"{', '.join(ours) or 'none of our own'}; torch's reference for the other {rest}"


def speed_table(found: Profile) -> list[list[str]]:
    """Return rows of text: a header, GFLOP/s of each product by number format, and all of them together."""
    formats = list(found.products)
    rates: dict[str, dict[str, str]] = {}
    for one in found.table:
        case = f"{one.direction}   {one.rows} x {one.inputs} x {one.outputs}"
        rates.setdefault(case, {})[one.dtype] = f"{one.rate / 1e9:.3g}"
    rates["together"] = {dtype: f"{rate / 1e9:.3g}" for dtype, rate in found.products.items()}
    rows = [[case, *(by_format.get(dtype, "-") for dtype in formats)] for case, by_format in rates.items()]
    return [["products, GFLOP/s (rows x in x out)", *formats], *rows]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _trouble(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # any exception of a changed library is the finding
        return f"{type(error).__name__}: {error}"


def _base(quant: str | None = None) -> tuple[Base, dict[str, Any]]:
    """Return a random base with two adapters whose effect is visible, and the keywords of a forward."""
    base = fresh(TINY, dtype="fp32")
    if quant:
        quantise_model(base.model, Scheme(quant))
    for name in ("a", "b"):
        adapter = base.attach(name, described({"name": "lora", "r": 2}))
        generator = torch.Generator().manual_seed(len(name) + ord(name))
        with torch.no_grad():
            for p in adapter.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0), device="cpu")
    return base, {"ids": ids.to(base.device)}


def hooks_route_rows() -> str:
    """Check that two rows with two adapters answer as each row alone."""
    base, inputs = _base()
    with torch.no_grad():
        both = base(**inputs, adapters=["a", "b"]).logits
        alone = [base(inputs["ids"][i : i + 1], adapters=[name]).logits for i, name in enumerate("ab")]
    difference = (both - torch.cat(alone)).abs().max().item()
    return "" if difference < 1e-5 else f"rows differ by {difference:.1g}"


def checkpointing_keeps_gradients() -> str:
    """Check that checkpointing does not change the gradients of one backward through two adapters."""
    gradients = []
    for on in (False, True):
        base, inputs = _base()
        base.checkpointing(on)
        base.train(True)
        losses = []
        for name in ("a", "b"):
            with base.using(name):
                losses.append(base(**inputs, use_cache=False).logits.square().mean())
        torch.stack(losses).sum().backward()
        gradients.append([p.grad for name in "ab" for p in base.adapters[name].parameters()])
    difference = max((x - y).abs().max().item() for x, y in zip(*gradients, strict=True))
    return "" if difference < 1e-6 else f"gradients differ by {difference:.1g}"


def detach_leaves_no_trace() -> str:
    """Check that after detach the base answers as before, bit for bit."""
    base, inputs = _base()
    with torch.no_grad():
        before = base(**inputs).logits
        for name in "ab":
            base.detach(name)
        same = torch.equal(before, base(**inputs).logits)
    return "" if same else "the bare base answers differently"


def packed_weights_answer() -> str:
    """Check that an adapter on a 4-bit base receives finite gradients."""
    base, inputs = _base("nf4")
    with base.using("a"):
        loss = base(**inputs, use_cache=False).logits.square().mean()
    loss.backward()
    sound = all(p.grad is not None and torch.isfinite(p.grad).all() for p in base.adapters["a"].parameters())
    return "" if sound else "no finite gradient through packed weights"


def losses_agree() -> str:
    """Check that the chunked loss from hidden states equals cross-entropy on full logits."""
    from graft.data.batches import Batch  # late: the other checks need no data layer

    base, inputs = _base()
    ids = inputs["ids"]
    with torch.no_grad(), base.using("a"):
        chunked = language_modelling(base, Batch({"input_ids": ids}, ids, ids.numel() - 2, []))[0]
        full = torch.nn.functional.cross_entropy(
            base(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
        )
    difference = (chunked - full).abs().item()
    return "" if difference < 1e-3 else f"losses differ by {difference:.1g}"


CHECKS: dict[str, Callable[[], str]] = {
    "hooks route rows to adapters": hooks_route_rows,
    "checkpointing keeps gradients": checkpointing_keeps_gradients,
    "detach leaves no trace": detach_leaves_no_trace,
    "packed weights answer and train": packed_weights_answer,
    "chunked loss equals the full one": losses_agree,
}
