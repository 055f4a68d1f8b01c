"""PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`: their bytes, written and read.

What only Graft needs (the base's fingerprint, settings that PEFT does not know) is kept in the metadata of
the safetensors file, which other readers ignore. What the settings mean is decided in `base.adapter_files`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graft import storage
from graft.errors import AdapterError
from graft.quant.finite import require_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def write(folder: Path, config: Settings, tensors: Tensors, facts: Settings) -> Path:
    """Write the two files, and read the tensors again, so that a damaged file is never reported as a success.

    facts: what only Graft reads back.
    Raises AdapterError for tensors that are not finite, or that did not reach the file.
    """
    require_finite(tensors.items(), AdapterError, "go back to the last good checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in random order, and equal adapters must be equal files.
    metadata = {"graft": json.dumps(facts, sort_keys=True)}
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
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


def read(folder: Path, weights: str = WEIGHTS) -> tuple[Settings, Tensors, Settings]:
    """Return (config, tensors, facts); `facts` is empty for a file that Graft did not write.

    weights: name of the file of tensors. Other tools keep their config under PEFT's name, but not the
    tensors.
    """
    config = json.loads((folder / CONFIG).read_text())
    with safe_open(folder / weights, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("graft", "{}"))
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    return config, tensors, facts
