"""Write certificate.json for every export: what it was made from, and how far it is from what was trained.

    weights      |file − (W + D)| of every tensor: max and mean; the share of the update
                 ⟨file − W, D⟩ / ⟨D, D⟩ that the file holds (`fidelity`)
    logits       |file's − adapted base's| on the prompts (`prompts`): max and mean
    perplexity   of the prompts: bare base, base with the adapters, the file
    classes      of a classifier: how many prompts get the same class, and how many the right one

The file is read again from its folder, the way its target program sees it: a `Reading` gives its logits and
weights. A new format brings its own reading (`readback`) and calls `certify` before its folder is renamed
into place. The certificate also holds fingerprints of base and adapters, a digest of all weights of the base
and its settings, versions, and the SHA-256 of every file, so that `graft verify` can repeat everything and
loading finds files that were changed (`storage.written`). Its own SHA-256 is its first entry. Nothing in it
says where things lie on the machine that made it (`provenance`).
"""

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

import graft
from graft import storage
from graft.errors import MergeError
from graft.models.load import DTYPES
from graft.quant import packed_layers
from graft.shipping import prompts as texts
from graft.shipping import provenance
from graft.shipping.card import licence
from graft.shipping.fidelity import Tally, agreement, answers, ask, drift, perplexity
from graft.shipping.prompts import Prompts
from graft.shipping.updates import ideal, stacked

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

CERTIFICATE = storage.CERTIFICATE
QUANTISED = "quantised"  # the format of a model that was packed, and not measured
TOOLS = ("torch", "transformers", "tokenizers", "safetensors")


class Reading(Protocol):
    """A written folder as its program sees it.

    of: "model"; "adapter" if the folder holds an adapter alone; "classifier" if its head is a task's.
    """

    of: str

    def logits(self, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        """Answer (1, T) -> (1, T, V), or the logits of classes.

        extra: `decoder_input_ids` for an encoder-decoder, `token_type_ids` of two texts.
        """

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
    prompts: Prompts | None = None,
) -> dict[str, Any]:
    """Measure `folder` against `base` with `adapters` attached (none of them merged); write certificate.json.

    adapters: in the order of merging; none: the bare base was exported.  trained: the base that they were
    trained on, whose answers count, if their changes were added to the weights of another.  notes: more facts
    to keep.  prompts: to measure with; the fixed texts by default.
    Raises MergeError if a measurement is not a finite number.
    """
    trained = trained or base
    facts = {
        "format": format,
        **made(),
        **(notes or {}),
        "base": described(trained, folder),
        "added_to": None if trained is base else described(base, folder),
        "adapters": [_adapter(base.adapters[name], folder) for name in adapters],
        **measured(base, reading, adapters, trained, prompts),
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
        **made(),
        "quant": quant,
        "calibrated": calibrated,
        "base": described(base, folder),
        "adapters": [],
        "versions": versions(),
        **digests(folder),
    }
    write(folder, facts)


def made() -> dict[str, str]:
    """Return by which program and on which day something is written."""
    return {"created_by": f"graft {graft.__version__}", "date": datetime.now(UTC).date().isoformat()}


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


def measured(
    base: "Base",
    reading: Reading,
    adapters: Sequence[str],
    trained: "Base",
    prompts: Prompts | None = None,
) -> dict[str, Any]:
    """Return {"prompts", "weights", "logits", "perplexity"}; `certify` writes it, `verify` repeats it.

    Of a classifier there are "classes", too.
    """
    asked = prompts or texts.fixed(trained, adapters)
    bare = answers(trained, None, asked)
    with stacked(trained, adapters[:-1]):
        adapted = answers(trained, adapters[-1], asked) if adapters else bare
    written = ask(trained, asked, reading.logits)
    of = {"base": bare, "adapted": adapted, "written": written}
    classes = {"classes": agreement(asked, adapted, written)} if asked.classes else {}
    return {
        "prompts": asked.facts(),
        "weights": _weights(base, reading, adapters),
        "logits": drift(bare, adapted, written),
        "perplexity": {name: perplexity(trained, asked, logits) for name, logits in of.items()},
        **classes,
    }


def described(base: "Base", folder: Path) -> dict[str, Any]:
    """Return what identifies this base, and the way to it from a folder that others may read."""
    schemes = [layer.scheme for layer in packed_layers(base.model).values()]
    return {
        "name": provenance.public_name(base),
        "path": provenance.way_to_base(base, folder),
        "revision": provenance.revision(base),
        "licence": licence(base),
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


def _adapter(adapter: "Adapter", folder: Path) -> dict[str, Any]:
    place = adapter.folder if adapter.folder is not None and adapter.folder.is_dir() else None
    return {
        "name": adapter.name,
        "folder": None if place is None else provenance.last_name(place),
        "path": None if place is None else provenance.way(place, folder),
        "fingerprint": adapter.fingerprint(),
        "methods": [method.name() for method in adapter.methods],
    }


@torch.no_grad()
def _weights(base: "Base", reading: Reading, adapters: Sequence[str]) -> dict[str, Any] | None:
    """Compare every tensor of the reading with what it should be; None if it has none.

    survived: the share of the update that is there; None if no weight was to change.  missing: names of
    absent tensors; a classifier has no language head, and its pooler is another one.
    """
    tally, missing = Tally(), []
    wanted = ideal(base, adapters)
    if reading.of == "adapter":
        state = base.adapters[adapters[-1]].file_state()
        wanted = ((key, tensor, tensor) for key, tensor in state.items())
    for key, before, tensor in wanted:
        written = reading.weight(key)
        if written is not None:
            tally.add(key, before, tensor, written.to(tensor.device))
        elif reading.of != "classifier":
            missing.append(key)
    if not tally.count:
        return None
    survived = tally.kept if tally.tensors else None
    worst = min(tally.tensors, key=lambda key: tally.tensors[key]["kept"], default=None)
    return {"max": tally.max, "mean": tally.mean, "survived": survived, "worst": worst, "missing": missing}
