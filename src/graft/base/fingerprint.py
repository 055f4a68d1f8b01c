"""Count a model's parameters, and tell it from other models: by a few of its values, or by all of them.

Adapters are known to a model by samples of its values, which it keeps when it is quantised, narrowed or moved
(`fingerprint`, `quant.origin`). A run, and what was exported, depend on every weight and on each setting that
changes what is computed (`contents`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft import storage
from graft.core.anatomy import kind_of
from graft.quant import is_packed
from graft.quant.origin import of_blocks, samples

# Settings of a model that change nothing that is computed, or that are compared by a name of their own.
IDLE = (
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "tokenizer_class",
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "gradient_checkpointing", "initializer_range", "initializer_factor", "problem_type", "id2label",
    "label2id", "task_specific_params",
)  # fmt: skip


def count(model: Any) -> int:
    """Count parameters; packed weights count as the numbers they stand for, tied tensors once."""
    packed = [module for module in model.modules() if is_packed(module)]
    held = {
        id(p) for module in packed for name, p in module.named_parameters(recurse=False) if name != "bias"
    }
    plain = sum(p.numel() for p in model.parameters() if id(p) not in held)
    return plain + sum(module.in_features * module.out_features for module in packed)


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of the architecture and of samples of embeddings and norms.

    Quantisation does not change these, so a model and its quantised form have the same fingerprint: an
    adapter trained on NF4 loads onto the original. A model of another shape has another one, and so has a
    model whose embeddings or norms were trained further.
    """
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    shape = {key: getattr(model.config, key, None) for key in keys}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, p in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Embedding) or kind_of(module) == "norm":
            digest.update(name.encode() + samples(p).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def origin(model: Any) -> str | None:
    """Return a digest of samples of the blocks' weights, as they were before they were packed.

    A folder of ours with packed weights may say it. None where it is unknown.
    """
    said = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    recorded: str | None = getattr(said, "origin", None)
    return of_blocks(model) or recorded


def contents(model: Any, files: Sequence[Path]) -> dict[str, Any]:
    """Return by name what tells a model from every other: a digest of all weights, and its settings.

    files: that the weights were read from; their bytes are hashed, once for as long as they do not change.
    Without any, the tensors in memory are, the codes of packed ones, each time.
    """
    digests = sorted(storage.known_digest(file) for file in files)
    weights = (
        {"files of the base": hashlib.sha256(" ".join(digests).encode()).hexdigest()}
        if digests
        else {"tensors of the base": _tensors(model)}
    )
    return {**weights, "class of the base": type(model).__name__, **settings_of(model)}


def settings_of(model: Any) -> dict[str, Any]:
    """Return the settings of a model's config that change what it computes, by the name that errors say."""
    settings: dict[str, Any] = model.config.to_dict()
    packed = settings.pop("quantization_config", None) or {}
    if getattr(
        getattr(model, "hf_quantizer", None), "pre_quantized", False
    ):  # else the run's settings say it
        settings["quantization"] = {key: packed.get(key) for key in ("scheme", "block", "double")}
    # A certificate is plain JSON, which has no infinity.
    plain = json.loads(json.dumps(settings, default=str), parse_constant=str)
    return {f"{key} of the base": value for key, value in _flat(plain).items()}


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key, without the idle ones."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in IDLE:
            flat |= _flat(value, f"{before}{key}.")
        elif key not in IDLE:
            flat[before + key] = value
    return flat


def _tensors(model: nn.Module) -> str:
    """Return the SHA-256 of every tensor of a model, as it is in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
