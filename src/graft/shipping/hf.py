"""Write a base as an ordinary Hugging Face folder: 16 or 32 bits, nothing of Graft in it; or packed as it is.

The model is written from a clone of its class that shares the tensors. In the clone packed layers are
dequantised (unless they stay packed), and a head that is no longer tied is untied in the config. The base
itself stays untouched; transformers writes the files.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from graft.errors import MergeError, ModelError
from graft.models.load import quiet
from graft.quant import QuantLinear, packed_layers
from graft.quant.experts import PackedExperts, packed_experts, seat
from graft.quant.finite import require_finite
from graft.quant.hf import GraftQuantConfig, packed_by
from graft.storage import named_errors

if TYPE_CHECKING:
    from graft.base.base import Base

BIASES = ("attention_bias", "mlp_bias")  # settings of transformers' configs that give projections a bias


def write_model(base: "Base", folder: Path, *, packed: bool = False, shard: str = "5GB") -> list[str]:
    """Write configs, weights, tokenizer and chat template; return the names of unpacked layers.

    packed: leave packed layers as they are.  shard: largest size of one file, in transformers' words.
    Raises ModelError if a tensor is not finite or did not reach the file.
    """
    clone, unpacked = checked_copy(base.model, packed=packed, dtype=base.file_dtype)
    write_state(base, clone, clone.state_dict(), folder, shard=shard)
    return unpacked


def write_state(
    base: "Base", clone: Any, state: dict[str, torch.Tensor], folder: Path, *, shard: str = "5GB"
) -> None:
    """Write the configs of `clone`, these tensors, the tokenizer and its chat template.

    Raises ModelError if a tensor did not reach the file.
    """
    needed = sum({t.data_ptr(): t.nbytes for t in state.values()}.values())
    with quiet(), named_errors("while writing it", folder, needed):
        clone.save_pretrained(folder, state_dict=dict(state), max_shard_size=shard)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(folder)
    _written(state, folder)


def checked_copy(
    model: nn.Module, *, packed: bool = False, dtype: torch.dtype | None = None
) -> tuple[Any, list[str]]:
    """Return `plain_copy`. Raises ModelError if a number of it is not finite."""
    clone, unpacked = plain_copy(model, packed=packed, dtype=dtype)
    require_finite(clone.named_parameters(), ModelError, "merge an adapter whose training did not diverge")
    return clone, unpacked


def plain_copy(
    model: Any, *, packed: bool = False, dtype: torch.dtype | None = None
) -> tuple[Any, list[str]]:
    """Return a clone that shares its tensors with `model`, and the names of layers that were packed.

    The clone is in 16 or 32 bits.  packed: packed layers stay so, and are not named.  dtype: of its weights,
    if it is not the model's; those are copies then, each rounded once.
    """
    rounded = _rounding(model, dtype)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None:
        config.tie_word_embeddings = head.weight.data_ptr() == table.weight.data_ptr()
    clone = _empty(model, config)
    layers, experts = packed_layers(model), packed_experts(model)
    inside = tuple(f"{name}." for name in (*layers, *experts))
    state = {
        key: rounded(key, tensor) for key, tensor in model.state_dict().items() if not key.startswith(inside)
    }
    for name, module in layers.items():
        key = f"{name}.weight"
        state[key] = module.codes if packed else rounded(key, module.weight)
        if module.bias is not None:
            state[f"{name}.bias"] = rounded(f"{name}.bias", module.bias)
    for name, matrices in experts.items():
        state[name] = matrices.layers[0].codes if packed else rounded(name, matrices.weight)
    if state.keys() - clone.state_dict().keys():
        clone = _with_biases(model, config, state)
    if packed and experts:
        _pack_experts(clone, experts, state)
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
        clone.generation_config = _saveable(copy.deepcopy(model.generation_config))
    return clone.eval(), [] if packed else [*layers, *experts]


def _rounding(model: Any, dtype: torch.dtype | None) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Return what a tensor of a key becomes in files of this dtype; buffers, and what transformers keeps in
    fp32 there, stay as they are.
    """
    if dtype in (None, model.get_input_embeddings().weight.dtype):
        return lambda key, tensor: tensor
    stay = (*model._get_dtype_plan(dtype), *(name for name, _ in model.named_buffers()))
    return lambda key, tensor: tensor if any(word in key for word in stay) else tensor.detach().to(dtype)


def _pack(clone: Any, layers: dict[str, QuantLinear], state: dict[str, torch.Tensor]) -> None:
    """Give the empty clone packed layers like these; in `state` their tensors replace the weights."""
    for name, layer in layers.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in layer.packed().items()}
        bias = clone.get_submodule(name).bias if f"{name}.bias" in state else None
        twin = QuantLinear(layer.in_features, layer.out_features, layer.scheme, bias, layer.dtype, "meta")
        twin.transposed = layer.transposed
        clone.set_submodule(name, twin)
    scheme = next(iter(layers.values())).scheme
    packed_by(clone, GraftQuantConfig(scheme.name, scheme.block, scheme.double))


def _pack_experts(clone: Any, experts: dict[str, PackedExperts], state: dict[str, torch.Tensor]) -> None:
    """Give the empty clone packed experts like these; in `state` their tensors replace the parameters."""
    for name, matrices in experts.items():
        path, _, leaf = name.rpartition(".")
        shape, scheme, kind = matrices.shape, matrices.scheme, matrices.dtype
        twin = PackedExperts.empty(shape, scheme, kind, transposed=matrices.transposed)
        seat(clone.get_submodule(path), leaf, twin)
        del state[name]
        state |= {f"{name}.{part}": tensor for part, tensor in matrices.state_dict().items()}


def _empty(model: Any, config: Any) -> Any:
    """Return a model of this class whose tensors have no memory."""
    with torch.device("meta"):
        return type(model)(config)


def _with_biases(model: Any, config: Any, state: dict[str, torch.Tensor]) -> Any:
    """Return an empty model whose config asks for biases, as a merge has added some.

    The biases that it did not add become zero.
    """
    for flag in BIASES:
        if hasattr(config, flag):
            setattr(config, flag, True)
    clone = _empty(model, config)
    wanted = clone.state_dict()
    extra = sorted(state.keys() - wanted.keys())
    if extra:
        raise MergeError(
            f"{extra[0]} was added by an adapter ({len(extra)} tensors were)",
            f"tensors that a {type(model).__name__} of transformers has",
            "keep the adapter attached, or train it on target_modules that have such tensors",
        )
    for key in wanted.keys() - state.keys():
        state[key] = torch.zeros(wanted[key].shape, dtype=model.get_input_embeddings().weight.dtype)
    return clone


def _saveable(config: Any) -> Any:
    """Let a generation config with sampling values sample; transformers refuses to save it otherwise."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


def _written(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise ModelError unless the files hold as many values as these tensors, shared memory counted once."""
    stored = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            stored += sum(_size(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    shared = {t.untyped_storage().data_ptr(): t.numel() for t in state.values()}
    if stored != sum(shared.values()):
        raise ModelError(
            f"{folder} holds {stored:,} of {sum(shared.values()):,} values",
            "all weights of the model",
            "check the disk and export again",
        )


def _size(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
