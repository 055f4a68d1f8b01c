"""PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`: their bytes, written and read.

What only Graft needs (the base's fingerprint, settings that PEFT does not know) is kept in the metadata of
the safetensors file, which other readers ignore. What the settings mean is decided in `base.adapter_files`.

The metadata also hold three SHA-256, of the tensors, of the settings and of what only Graft needs. They are
compared while the files are read. Files without them, of PEFT or of an older Graft, are read as they are.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graft import storage
from graft.errors import AdapterError, notice
from graft.quant.finite import require_finite
from graft.storage.written import forget_written

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ENTRY = "graft"  # the one entry of the metadata that is ours
FACTS = {"base", "methods"}  # what `facts` has, next to the digests
BASE = (
    "base_model_name_or_path"  # may be edited: the fingerprint of the base tells whether it is the right one
)

Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def write(folder: Path, config: Settings, tensors: Tensors, facts: Settings) -> Path:
    """Write the two files, and read the tensors again, so that a damaged file is never reported as a success.

    facts: what only Graft reads back.
    Raises AdapterError for tensors that are not finite, or that did not reach the file.
    """
    require_finite(tensors.items(), AdapterError, "go back to the last good checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    forget_written(folder)  # what lies there is about the files before these
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # One entry: safetensors writes several in random order, and equal adapters must be equal files.
    metadata = {ENTRY: _text(_as_stored(facts) | {"sha256": _digests(config, kept, facts)})}
    with storage.new_file(folder / WEIGHTS) as partial:
        save_file(kept, partial, metadata=metadata)
        with safe_open(partial, "pt") as written:
            keys = set(written.keys())
            lost = [k for k, t in kept.items() if k not in keys or not torch.equal(written.get_tensor(k), t)]
        if lost:
            raise AdapterError(
                f"{lost[0]} did not reach {partial}",
                "the tensors that were written",
                "check the disk and save again",
            )
    storage.replace(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return folder


def read(folder: Path, weights: str = WEIGHTS, *, force: bool = False) -> tuple[Settings, Tensors, Settings]:
    """Return (config, tensors, facts); `facts` is empty for a file that Graft did not write.

    weights: name of the file of tensors. Other tools keep their config under PEFT's name, but not the
    tensors.  force: take settings that were changed since the tensors were written.
    Raises AdapterError if the files are not as Graft wrote them.
    """
    storage.require_unchanged(folder, AdapterError, lambda name: not (force and name == CONFIG))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with safe_open(folder / weights, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    facts, wanted = _facts(metadata, folder / weights)
    if wanted and storage.is_comparing():
        if not isinstance(config, dict):
            raise _damaged(folder / CONFIG, "is not a JSON object")
        _compare(folder / weights, wanted, _digests(config, tensors, facts), force=force)
        _name_other_base(folder, config, facts)
    return config, tensors, facts


def carries_digests(folder: Path) -> bool:
    """Return whether the files of an adapter say which tensors and settings were saved."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return bool(_facts(file.metadata() or {}, folder / WEIGHTS)[1])


def digest_of(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digests(config: Settings, tensors: Tensors, facts: Settings) -> dict[str, str]:
    """Return the digests of the three parts of an adapter's files."""
    settings = {key: value for key, value in _as_stored(config).items() if key != BASE}
    return {
        "facts": hashlib.sha256(_text(_as_stored(facts)).encode()).hexdigest(),
        "settings": hashlib.sha256(_text(settings).encode()).hexdigest(),
        "tensors": digest_of(tensors),
    }


def _as_stored(value: Settings) -> Settings:
    """Return an object as JSON gives it back: without tuples, and with text for keys."""
    stored: Settings = json.loads(json.dumps(value))
    return stored


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _facts(metadata: dict[str, str], path: Path) -> tuple[Settings, Settings]:
    """Return (what only Graft needs, the digests) of a file; both are empty for other tools' files.

    Raises AdapterError for an entry of ours that was changed: also where its name was, or that of a part.
    """
    text = metadata.get(ENTRY)
    if text is None:
        if any('"sha256": {' in value for value in metadata.values()):
            raise _damaged(path, f"has no entry {ENTRY!r} in its metadata any more")
        return {}, {}
    facts = json.loads(text)
    if not isinstance(facts, dict) or ("sha256" in facts and _text(facts) != text):
        raise _damaged(path, f"has an entry {ENTRY!r} in its metadata that was changed")
    wanted = facts.pop("sha256", {})
    if not isinstance(wanted, dict) or (not wanted and facts.keys() - FACTS):
        raise _damaged(path, f"has other digests than Graft writes in its entry {ENTRY!r}")
    return facts, wanted


def _compare(path: Path, wanted: Settings, now: dict[str, str], *, force: bool) -> None:
    """Raise AdapterError, naming what was changed, if these digests differ."""
    other = sorted(part for part in {*wanted, *now} if wanted.get(part) != now.get(part))
    if other == ["settings"]:
        if not force:
            raise AdapterError(
                f"{path.with_name(CONFIG)} was changed after the adapter was saved",
                "the settings that belong to its tensors",
                "copy the file again from where it came; if you changed it on purpose, load and save it: "
                f"base.load_adapter({str(path.parent)!r}, ..., force=True).save(FOLDER)",
            )
    elif other:
        raise _damaged(path, f"was changed after it was written ({', '.join(other)})")


def _name_other_base(folder: Path, config: Settings, facts: Settings) -> None:
    """Give notice of a config that names another base than the one the adapter was saved with."""
    base = facts.get("base")
    saved = base.get("name") if isinstance(base, dict) else None
    if saved is not None and config.get(BASE) != saved:
        notice(f"{folder / CONFIG} names the base {config.get(BASE)!r}; it was saved with {saved!r}")


def _damaged(path: Path, state: str) -> AdapterError:
    return AdapterError(
        f"{path} {state}", "the file as Graft wrote it", "copy it again from where it came, or save it again"
    )
