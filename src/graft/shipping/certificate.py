"""Write certificate.json for every export: what it was made from, and how far it is from what was trained.

    weights      |file − (W + D)| of every tensor: max and mean; the share of the update
                 ⟨file − W, D⟩ / ⟨D, D⟩ that the file holds (`fidelity`)
    logits       |file's − adapted base's| on the fixed prompts: max and mean
    perplexity   of the fixed prompts: bare base, base with the adapters, the file

The file is read again from its folder, the way its target program sees it: a `Reading` gives its logits and
weights. A new format brings its own reading (`readback`) and calls `certify` before its folder is renamed
into place. The certificate also holds fingerprints of base and adapters, a digest of all weights of the base
and its settings, versions, and the SHA-256 of every file, so that `graft verify` can repeat everything and
loading finds files that were changed (`storage.written`). Its own SHA-256 is its first entry.
"""

import contextlib
import json
import math
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

import graft
from graft import storage
from graft.base.merging import folded, places
from graft.core.insert import Insert
from graft.core.site import Site
from graft.errors import MergeError
from graft.models.load import DTYPES
from graft.quant import QuantLinear, packed_layers
from graft.quant.experts import PackedExperts, outer_modules
from graft.shipping import prompts
from graft.shipping.fidelity import Tally, answers, ask, drift, perplexity

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

CERTIFICATE = storage.CERTIFICATE
QUANTISED = "quantised"  # the format of a model that was packed, and not measured
TOOLS = ("torch", "transformers", "tokenizers", "safetensors")


class Reading(Protocol):
    """A written folder as its program sees it.

    of: "model", or "adapter" if the folder holds an adapter alone.
    """

    of: str

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        """Answer (1, T) -> (1, T, V); extra: `decoder_input_ids` for an encoder-decoder."""

    def weight(self, name: str) -> torch.Tensor | None:
        """Return the tensor of this name in transformers, or in an adapter's file; None if there is none."""


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
    """Measure `folder` against `base` with `adapters` attached (none of them merged); write certificate.json.

    adapters: in the order of merging; none: the bare base was exported.  trained: the base that they were
    trained on, whose answers count, if their changes were added to the weights of another.  notes: more facts
    to keep.
    Raises MergeError if a measurement is not a finite number.
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
        **digests(folder),
    }
    _require_numbers(facts, folder)
    write(folder, facts)
    return facts


def certify_quantised(base: "Base", folder: Path, quant: str, *, calibrated: bool) -> None:
    """Write the certificate of a folder with packed weights: what it was made from, and its files.

    base: the packed one.  calibrated: whether rows chose the codes.
    """
    facts = {
        "format": QUANTISED,
        "quant": quant,
        "calibrated": calibrated,
        "base": described(base),
        "adapters": [],
        "versions": versions(),
        **digests(folder),
    }
    write(folder, facts)


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Write certificate.json. Keys keep their order, for people."""
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.replace(folder / CERTIFICATE, storage.seal(text.encode()))


def _require_numbers(facts: dict[str, Any], folder: Path) -> None:
    """Raise MergeError if a measurement is NaN or infinite: the model answers with no numbers."""
    for part in ("weights", "logits", "perplexity"):
        for name, value in (facts[part] or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise MergeError(
                    f"{part} of the model in {folder.name}: {name} is {value}",
                    "finite numbers, which a model with overflowing weights does not answer with",
                    "export an adapter whose training did not diverge, or a base in a wider number format",
                )


def measured(base: "Base", reading: Reading, adapters: Sequence[str], trained: "Base") -> dict[str, Any]:
    """Return {"prompts", "weights", "logits", "perplexity"}; `certify` writes it, `verify` repeats it."""
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


@contextlib.contextmanager
def stacked(base: "Base", names: Sequence[str], *, repack: bool = False) -> Iterator[None]:
    """Merge these adapters inside the block, in this order."""
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
    """Unmerge everything inside the block, and merge it again afterwards.

    Yields the names of what was merged, oldest first.
    """
    merged = [(done.adapter, bool(done.repacked)) for done in base.merged]
    for name, _ in reversed(merged):
        base.unmerge(name)
    try:
        yield [name for name, _ in merged]
    finally:
        for name, repack in merged:
            base.merge(name, repack=repack)


def described(base: "Base") -> dict[str, Any]:
    """Return what identifies this base."""
    schemes = [layer.scheme for layer in packed_layers(base.model).values()]
    return {
        "name": str(Path(base.name).resolve()) if Path(base.name).exists() else base.name,
        "fingerprint": base.fingerprint(),
        "contents": base.contents(),
        "class": type(base.model).__name__,
        "family": base.family,
        "dtype": dtype_word(base),
        "quant": base.quant,
        "group": next((scheme.block for scheme in schemes if scheme.grouped), 0),
        "tokenizer": base.tokenizer is not None,
    }


def dtype_word(base: "Base") -> str:
    """Return the word by which `graft.load` knows the dtype of a base."""
    return next((word for word, dtype in DTYPES.items() if dtype == base.dtype), str(base.dtype))


def versions() -> dict[str, str]:
    """Return the versions of Graft, Python and the libraries that a file's bytes and numbers depend on."""
    return {
        "graft": graft.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in TOOLS},
    }


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """Return {"files": {file: SHA-256}, "xxh3": {file: XXH3}} of every file but the certificate."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / CERTIFICATE)
    kinds = {"files": "sha256", storage.QUICK: storage.QUICK}
    return {
        key: {path.relative_to(folder).as_posix(): storage.digest(path, kind) for path in files}
        for key, kind in kinds.items()
    }


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
    """Compare every tensor of the reading with what it should be; None if it has none.

    survived: the share of the update that is there; None if no weight was to change.  missing: names of
    absent tensors.
    """
    tally, missing = Tally(), []
    wanted = ideal(base, adapters)
    if reading.of == "adapter":
        state = base.adapters[adapters[-1]].file_state()
        wanted = ((key, tensor, tensor) for key, tensor in state.items())
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
    """Yield (name, W, W + D) of every tensor of the model, with transformers' shapes and names.

    D is all that these adapters add, before any rounding. In-place methods count into W: they are merged
    exactly.
    """
    changes: dict[str, dict[str, tuple[Site, list[Insert]]]] = {}
    with contextlib.ExitStack() as stack:
        for adapter in (base.adapters[name] for name in adapters):
            stack.enter_context(adapter.swapped())
            for site, inserts in places(adapter):
                changes.setdefault(site.path, {}).setdefault(site.name, (site, []))[1].extend(inserts)
        for path, module in outer_modules(base.model):
            before = tensors(module)
            after = dict(before)
            for place in changes.get(path, {}).values():
                after |= _changed(module, *place)
            for name, tensor in after.items():
                yield f"{path}.{name}", before.get(name, torch.zeros_like(tensor)), tensor


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """Return a module's own parameters as files of transformers hold them; packed ones are dequantised."""
    if not isinstance(module, QuantLinear):
        packed = {name: m.weight for name, m in module.named_children() if isinstance(m, PackedExperts)}
        return packed | {name: p.detach() for name, p in module._parameters.items() if p is not None}
    weight = module.weight.T if module.transposed else module.weight
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": module.bias.detach()}


def _changed(module: Any, site: Site, inserts: Sequence[Insert]) -> dict[str, torch.Tensor]:
    weight, bias = folded(site, inserts)
    if site.kind == "parameter":
        return {site.leaf: site.stored(weight)}
    weight = weight.T if site.transposed or getattr(module, "transposed", False) else weight
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
