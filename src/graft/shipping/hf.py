"""A base as an ordinary Hugging Face folder: 16 or 32 bits, no hooks, nothing of Graft in it; or packed as it is.

The model is written from a clone of its class that shares the tensors: packed layers come out dequantised unless they
shall stay packed, a head that left its tie is untied in the config, and the base itself stays untouched. transformers
writes the files.
"""

import contextlib
import copy
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from graft.errors import MergeError, ModelError, SpaceError, UsageError
from graft.models.load import quiet
from graft.quant import QuantLinear, is_packed
from graft.quant.hf import GraftQuantConfig, packed_by

if TYPE_CHECKING:
    from graft.base.base import Base

BIASES = ("attention_bias", "mlp_bias")  # settings of transformers' configs that give projections a bias


def write_model(base: "Base", folder: Path, *, packed: bool = False, shard: str = "5GB") -> list[str]:
    """Write config, generation config, weights, tokenizer and chat template; returns the names of unpacked layers.

    packed: leave packed layers as they are.  shard: largest size of one file, as transformers understands it. Raises
    ModelError where a tensor is not finite or did not reach the file.
    """
    clone, unpacked = sound(base.model, packed=packed)
    write_state(base, clone, clone.state_dict(), folder, shard=shard)
    return unpacked


def write_state(
    base: "Base", clone: Any, state: dict[str, torch.Tensor], folder: Path, *, shard: str = "5GB"
) -> None:
    """Write the configs of `clone`, these tensors, tokenizer and chat template.

    Raises ModelError where a tensor did not reach the file.
    """
    with quiet():
        clone.save_pretrained(folder, state_dict=dict(state), max_shard_size=shard)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(folder)
    _written(state, folder)


def sound(model: nn.Module, *, packed: bool = False) -> tuple[nn.Module, list[str]]:
    """`plain`, with every number finite; raises ModelError otherwise."""
    clone, unpacked = plain(model, packed=packed)
    floats = ((name, tensor) for name, tensor in clone.named_parameters() if tensor.is_floating_point())
    bad = [name for name, tensor in floats if not torch.isfinite(tensor).all()]
    if bad:
        raise ModelError(
            f"{bad[0]} holds NaN or infinity ({len(bad)} tensors do)",
            "finite weights",
            "merge a sound adapter",
        )
    return clone, unpacked


def plain(model: nn.Module, *, packed: bool = False) -> tuple[nn.Module, list[str]]:
    """(clone in 16 or 32 bits that shares its tensors with `model`, names of the layers that were packed).

    packed: they stay so, and are not named.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None:
        config.tie_word_embeddings = head.weight.data_ptr() == table.weight.data_ptr()
    clone = _empty(model, config)
    layers = {name: module for name, module in model.named_modules() if is_packed(module)}
    inside = tuple(f"{name}." for name in layers)
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(inside)}
    for name, module in layers.items():
        state[f"{name}.weight"] = module.codes if packed else module.weight
        if module.bias is not None:
            state[f"{name}.bias"] = module.bias
    if state.keys() - clone.state_dict().keys():
        clone = _with_biases(model, config, state)
    if packed and layers:
        _pack(clone, layers, state)
    for name, module in clone.named_modules():
        if type(module).__name__ == "Conv1D" and type(model.get_submodule(name)).__name__ != "Conv1D":
            state[f"{name}.weight"] = state[f"{name}.weight"].T  # packing turns it into (out, in)
    clone.load_state_dict(
        {key: tensor.contiguous() for key, tensor in state.items()}, strict=True, assign=True
    )
    clone.tie_weights()
    if clone.can_generate():
        clone.generation_config = _sound(copy.deepcopy(model.generation_config))
    return clone.eval(), [] if packed else list(layers)


def _pack(clone: Any, layers: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Give the empty clone packed layers like these, whose tensors take the place of their weights in `state`."""
    for name, layer in layers.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in layer.packed().items()}
        bias = clone.get_submodule(name).bias if f"{name}.bias" in state else None
        twin = QuantLinear(layer.in_features, layer.out_features, layer.scheme, bias, layer.dtype, "meta")
        twin.transposed = layer.transposed
        clone.set_submodule(name, twin)
    scheme = next(iter(layers.values())).scheme
    packed_by(clone, GraftQuantConfig(scheme.name, scheme.block, scheme.double))


def _empty(model: nn.Module, config: Any) -> nn.Module:
    """A model of this class without storage."""
    with torch.device("meta"):
        return type(model)(config)


def _with_biases(model: nn.Module, config: Any, state: dict[str, torch.Tensor]) -> nn.Module:
    """An empty model whose config asks for biases, where a merge has added some; those it did not add become zero."""
    for flag in BIASES:
        if hasattr(config, flag):
            setattr(config, flag, True)
    clone = _empty(model, config)
    wanted = clone.state_dict()
    homeless = sorted(state.keys() - wanted.keys())
    if homeless:
        raise MergeError(
            f"{homeless[0]} was added by an adapter ({len(homeless)} tensors were)",
            f"tensors that a {type(model).__name__} of transformers has",
            "keep the adapter attached, or train it on target_modules that have such tensors",
        )
    for key in wanted.keys() - state.keys():
        state[key] = torch.zeros(wanted[key].shape, dtype=model.get_input_embeddings().weight.dtype)
    return clone


@contextlib.contextmanager
def replaced(folder: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, whole, or vanishes on an error.

    Raises UsageError where `folder` holds something and force is False, SpaceError where the disk is full.
    """
    refuse_occupied(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    partial, old = (folder.with_name(f".{folder.name}.{word}-{mark}") for word in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            free = shutil.disk_usage(folder.parent).free
            raise SpaceError(
                f"the disk of {folder.parent} is full ({free / 2**30:.2f} GiB free)",
                "room for the whole model",
                "free some",
            ) from error
        raise
    finally:
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)


def refuse_occupied(folder: Path, *, force: bool) -> None:
    """Raise UsageError where `folder` holds something and force is False."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise UsageError(
            f"{folder} exists", "a new folder", "choose another name, delete it, or pass force=True"
        )


def _sound(config: Any) -> Any:
    """A generation config that transformers refuses to save has sampling values without sampling: let it sample."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


def _written(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Read the files again: every tensor, or one that shares its storage, must be there with its values' count."""
    found = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found += sum(_size(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    shared = {t.untyped_storage().data_ptr(): t.numel() for t in state.values()}
    if found != sum(shared.values()):
        raise ModelError(
            f"{folder} holds {found:,} values of {sum(shared.values()):,}",
            "all weights",
            "check the disk, export again",
        )


def _size(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
