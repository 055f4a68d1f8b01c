"""certificate.json beside every merge and export: what was written from what, and how far it is from what was trained.

    weights      |file − (W + D)| of every tensor: max and mean; the share of the update ⟨file − W, D⟩ / ⟨D, D⟩ that the
                 file holds (`faithful`)
    logits       |file's − adapted base's| on the fixed prompts: max and mean
    perplexity   of the fixed prompts: bare base, base with the adapters, the file

The file is read again from its folder, as the program sees it that it was written for: a `Reading` gives its logits
and weights. A new format brings a reading of its own (`readings.py`) and calls `certify` before its folder takes its
place. With fingerprints of base and adapters, versions, and the SHA-256 of every file, `graft verify` does all again.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

import graft
from graft.base.merging import folded, places
from graft.core.insert import Insert
from graft.core.site import Site
from graft.models.load import DTYPES
from graft.quant import QuantLinear, is_packed
from graft.shipping import prompts
from graft.shipping.fidelity import Tally, answers, ask, drift, perplexity

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

CERTIFICATE = "certificate.json"
TOOLS = ("torch", "transformers", "tokenizers", "safetensors")


class Reading(Protocol):
    """A written folder as its program sees it.  of: "model", or "adapter" where the folder holds an adapter alone."""

    of: str

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        """(1, T) -> (1, T, V); extra: `decoder_input_ids` for an encoder-decoder."""

    def weight(self, name: str) -> torch.Tensor | None:
        """The tensor that transformers, or an adapter's file, calls so, in its shape there; None: there is none."""


def certify(
    base: "Base",
    folder: Path,
    format: str,
    reading: Reading,
    adapters: Sequence[str] = (),
    *,
    trained: "Base | None" = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure `folder` against `base` with `adapters` attached (none of them merged), write certificate.json into it.

    adapters: in the order of merging; none: the bare base was exported.  trained: the base that they were trained on,
    whose answers count, where their changes were added to the weights of another.  notes: more facts to keep.
    """
    trained = trained or base
    facts = {
        "format": format,
        **(notes or {}),
        "base": described(trained),
        "added_to": None if trained is base else described(base),
        "adapters": [_adapter(base.adapters[name]) for name in adapters],
        **measured(base, reading, adapters, trained),
        "versions": versions(),
        "files": files(folder),
    }
    (folder / CERTIFICATE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def measured(base: "Base", reading: Reading, adapters: Sequence[str], trained: "Base") -> dict[str, Any]:
    """{"prompts", "weights", "logits", "perplexity"} of a reading; what `certify` writes and `verify` does again."""
    rows = prompts.rows(trained, adapters)
    bare = answers(trained, None, rows)
    with stacked(trained, adapters[:-1]):
        adapted = answers(trained, adapters[-1], rows) if adapters else bare
    written = ask(trained, rows, reading.logits)
    of = {"base": bare, "adapted": adapted, "written": written}
    return {
        "prompts": {"rows": len(rows), "tokens": sum(map(len, rows)), "sha256": prompts.digest(rows)},
        "weights": _weights(base, reading, adapters),
        "logits": drift(bare, adapted, written),
        "perplexity": {name: perplexity(trained, rows, logits) for name, logits in of.items()},
    }


def said(facts: dict[str, Any]) -> str:
    """The certificate in one line."""
    weights, logits, ppl = (facts[key] for key in ("weights", "logits", "perplexity"))
    parts = ["rounded"] if facts.get("rounded") else []
    survived = weights and weights["survived"]
    parts += [] if survived is None else [f"{survived:.1%} of the update is there"]
    parts += (
        [f"weights differ by {weights['max']:.2g} at most ({weights['mean']:.2g} on average)"]
        if weights
        else []
    )
    parts += [f"logits by {logits['max']:.2g} ({logits['mean']:.2g})"]
    if ppl["written"] is not None:
        parts.append(f"perplexity {ppl['adapted']:.4g} -> {ppl['written']:.4g}")
    return "; ".join(parts)


@contextlib.contextmanager
def stacked(base: "Base", names: Sequence[str], *, repack: bool = False) -> Iterator[None]:
    """Inside, these adapters are merged, in this order."""
    done: list[str] = []
    try:
        for name in names:
            base.merge(name, repack=repack)
            done.append(name)
        yield
    finally:
        for name in reversed(done):
            base.unmerge(name)


@contextlib.contextmanager
def unmerged(base: "Base") -> Iterator[list[str]]:
    """Inside, nothing is merged; yields what was, oldest first, and merges it again."""
    merged = [(done.adapter, bool(done.repacked)) for done in base.merged]
    for name, _ in reversed(merged):
        base.unmerge(name)
    try:
        yield [name for name, _ in merged]
    finally:
        for name, repack in merged:
            base.merge(name, repack=repack)


def described(base: "Base") -> dict[str, Any]:
    """What finds this base again and tells it from another."""
    return {
        "name": str(Path(base.name).resolve()) if Path(base.name).exists() else base.name,
        "fingerprint": base.fingerprint(),
        "class": type(base.model).__name__,
        "family": base.family,
        "dtype": next((word for word, dtype in DTYPES.items() if dtype == base.dtype), str(base.dtype)),
        "quant": base.quant,
        "group": next((m.scheme.block for m in base.model.modules() if is_packed(m) and m.scheme.grouped), 0),
        "tokenizer": base.tokenizer is not None,
    }


def versions() -> dict[str, str]:
    """Of Graft, Python and what a file's bytes and numbers come from."""
    return {
        "graft": graft.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in TOOLS},
    }


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, the certificate left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / CERTIFICATE):
        with open(path, "rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _adapter(adapter: "Adapter") -> dict[str, Any]:
    folder = adapter.folder if adapter.folder is not None and adapter.folder.is_dir() else None
    return {
        "name": adapter.name,
        "folder": None if folder is None else str(folder),
        "fingerprint": adapter.fingerprint(),
        "methods": [method.name() for method in adapter.methods],
    }


@torch.no_grad()
def _weights(base: "Base", reading: Reading, adapters: Sequence[str]) -> dict[str, Any] | None:
    """Every tensor that the reading has, beside what it should be; None where it has none.

    survived: the share of the update that is there, None where no weight was to change.  missing: what it has not.
    """
    tally, missing = Tally(), []
    if reading.of == "adapter":
        state = base.adapters[adapters[-1]].file_state()
        wanted = ((key, tensor, tensor) for key, tensor in state.items())
    else:
        wanted = ideal(base, adapters)
    for key, before, tensor in wanted:
        written = reading.weight(key)
        if written is None:
            missing.append(key)
        else:
            tally.add(key, before, tensor, written.to(tensor.device))
    if not tally.count:
        return None
    survived = tally.kept if tally.tensors else None
    worst = min(tally.tensors, key=lambda key: tally.tensors[key]["kept"], default=None)
    return {"max": tally.max, "mean": tally.mean, "survived": survived, "worst": worst, "missing": missing}


def ideal(base: "Base", adapters: Sequence[str]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, W, W + D) of every tensor of the model, one at a time, in the shape and under the name of transformers.

    D is all that these adapters add, before any rounding. In-place methods count into W: they are merged exactly.
    """
    changes: dict[str, tuple[Site, list[Insert]]] = {}
    with contextlib.ExitStack() as stack:
        for adapter in (base.adapters[name] for name in adapters):
            stack.enter_context(adapter.swapped())
            for site, inserts in places(adapter):
                changes.setdefault(site.name, (site, []))[1].extend(inserts)
        for path, module in base.model.named_modules():
            own = tensors(module)
            new = _changed(module, *changes[path]) if path in changes else {}
            for name in own | new:
                after = new.get(name, own.get(name))
                yield f"{path}.{name}", own.get(name, torch.zeros_like(after)), after


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """A module's own parameters as files of transformers hold them, packed ones dequantised."""
    if not isinstance(module, QuantLinear):
        return {name: p.detach() for name, p in module._parameters.items() if p is not None}
    weight = module.weight.T if module.transposed else module.weight
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": module.bias.detach()}


def _changed(module: Any, site: Site, inserts: Sequence[Insert]) -> dict[str, torch.Tensor]:
    weight, bias = folded(site, inserts)
    weight = weight.T if site.transposed or getattr(module, "transposed", False) else weight
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
