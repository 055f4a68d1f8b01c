"""Convert an adapter folder whose tensors are a pickle; the pickle is read in a child process only.

    adapter_config.json                         copied as it is
    adapter_model.bin     (PEFT to 0.8)         ->  adapter_model.safetensors
    pytorch_adapter.bin   (adapters library)    ->  adapter.safetensors

The tensors keep their names and values, so what reads such a folder in safetensors reads this one.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from graft import storage
from graft.errors import AdapterError, UsageError
from graft.formats import adapterhub, peft
from graft.formats.loralib import unpickled

PICKLED = {"adapter_model.bin": peft.WEIGHTS, "pytorch_adapter.bin": adapterhub.WEIGHTS}


def pickled_in(path: str | Path) -> Path | None:
    """Return the pickle of an adapter folder, given the folder or that file; None for anything else.

    A folder that holds safetensors too needs no conversion.
    """
    path = Path(path)
    folder, names = (path, PICKLED) if path.is_dir() else (path.parent, [path.name])
    if not (folder / peft.CONFIG).is_file():
        return None
    found = [name for name in names if name in PICKLED and (folder / name).is_file()]
    return next((folder / name for name in found if not (folder / PICKLED[name]).exists()), None)


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings that lie beside a pickle. Raises AdapterError for a damaged file."""
    config = path.parent / peft.CONFIG
    try:
        settings: Any = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{config} is damaged ({error})", "JSON", "copy it again from where it came"
        ) from error
    if not isinstance(settings, dict):
        raise AdapterError(
            f"{config} is not a JSON object", "settings by name", "copy it again from where it came"
        )
    return settings


def convert(path: Path, out: Path, *, force: bool = False) -> str:
    """Write the adapter folder `out` with the tensors of a pickle (`pickled_in`); return what was done.

    Raises ModelError if the file cannot be read safely, UsageError if `out` exists and force is False.
    """
    if out.resolve() == path.parent.resolve():
        raise UsageError(f"{out} for both folders", "a new folder for the adapter", "name another one")
    storage.refuse_occupied(out, force=force)
    tensors = unpickled(path)
    with storage.output_folder(out, force=force) as folder:
        save_file(tensors, folder / PICKLED[path.name], metadata={"format": "pt"})
        storage.write(folder / peft.CONFIG, (path.parent / peft.CONFIG).read_bytes())
    count = sum(tensor.numel() for tensor in tensors.values())
    return (
        f"read {path.name} weights-only in a child process; wrote {len(tensors)} tensors ({count:,} values) "
        f"and {peft.CONFIG} to {out}"
    )
