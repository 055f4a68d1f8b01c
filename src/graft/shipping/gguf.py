"""Write a base as one GGUF file, or a LoRA as a GGUF adapter: what llama.cpp and Ollama open.

Matrices take the type that was asked for, with three exceptions: norms and biases stay in fp32, a table or
head never gets less than 8 bits, and a matrix whose rows are no multiple of 32 keeps 16 bits. A base packed
in groups goes into blocks with a minimum as it is, code by code; its 16-bit tensors then stay 16-bit, so
nothing is quantised twice. Tensors are encoded and written one by one.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graft.errors import ModelError, UsageError, one_of
from graft.formats import gguf_names as names
from graft.formats.gguf import BLOCK, FORMS, decode, encode, pack, unpack
from graft.kernels.groups import unpack_bits
from graft.quant import QuantLinear, packed_layers
from graft.quant.scheme import GROUPED
from graft.shipping.factors import factors_of
from graft.shipping.hf import checked_copy
from graft.shipping.instructions import ends
from graft.shipping.vocabulary import vocabulary
from graft.storage import named_errors

if TYPE_CHECKING:
    from graft.base.base import Base

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9}
TABLES = ("token_embd.weight", "output.weight")
LARGEST_BITS = 8  # of the types in blocks


def usual_type(base: "Base") -> str:
    """Return the default type for a base: one that holds its codes as they are, else 8 bits."""
    return "q4_1" if holds(base, "q4_1") else "q8_0"


def holds(base: "Base", form: str | None) -> bool:
    """Return whether files of this type (None: the default) hold layers of the base code by code."""
    form = form or usual_type(base)
    return form in FORMS and any(_holds(form, layer) for layer in packed_layers(base.model).values())


def check(base: "Base", form: str) -> names.Architecture:
    """Return what llama.cpp calls this model.

    Raises UsageError for an unknown type, and for a base that llama.cpp would refuse or compute differently.
    """
    one_of("type", form, FORMS)
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("GGUF files need the package gguf", "gguf installed", "pip install 'graftlm[gguf]'")
    if base.tokenizer is None:
        raise UsageError(
            f"{base.name} has no tokenizer, which a gguf needs",
            "a base with a tokenizer",
            "load it from a complete folder",
        )
    return names.architecture(base.model.config)


def write_gguf(base: "Base", folder: Path, form: str) -> tuple[list[str], str]:
    """Write NAME-FORM.gguf; return the names of layers that were unpacked, and the file's name.

    Raises UsageError for a model or tokenizer that llama.cpp would refuse, or treat differently from
    transformers.
    """
    arch = check(base, form)
    model, unpacked = checked_copy(base.model, dtype=base.file_dtype)
    config, rows = model.config, base.model.get_input_embeddings().weight.shape[0]
    keys = {
        "general.type": "model",
        "general.name": label(base),
        "general.file_type": FILE_TYPES[form],
        "general.quantization_version": 2,
        **names.settings(config),
        **vocabulary(base.tokenizer, rows, ends(base)),
    }
    tied = config.tie_word_embeddings
    state = {
        names.file_name(key, arch): t
        for key, t in model.state_dict().items()
        if not tied or key != "lm_head.weight"
    }
    factors = names.rope_factors(config)
    if factors is not None:
        state[names.ROPE_FACTORS] = factors
    exact = {
        names.file_name(f"{path}.weight", arch): layer
        for path, layer in packed_layers(base.model).items()
        if _holds(form, layer)
    }
    kind = base.file_dtype
    others = next(word for word in ("f32", "f16", "bf16") if FORMS[word].dtype == kind) if exact else form
    forms = {name: form if name in exact else _form(name, t, others, kind) for name, t in state.items()}

    def stored(name: str) -> Tensor:
        if name in exact:
            codes, scale, minimum = (names.to_file(t, name, arch, config) for t in _blocks(exact[name]))
            return pack(codes, scale, minimum, form)
        return _encoded(names.to_file(state[name], name, arch, config), name, forms[name])

    file = file_name(base, form)
    _write(folder / file, arch.name, keys, state, forms, stored)
    return [layer for layer in unpacked if names.file_name(f"{layer}.weight", arch) not in exact], file


def write_lora(base: "Base", folder: Path, adapter: str) -> str:
    """Write ADAPTER-lora.gguf, A and B of every site in fp32; return its name.

    Rows are in the order of the base's file. Raises UsageError if the adapter is more than low-rank updates
    of matrices that the file stores separately.
    """
    arch, config = check(base, "f32"), base.model.config
    for site, insert in base.adapters[adapter].inserts:
        if insert.low_rank() is None or (config.tie_word_embeddings and site.kind in ("embed", "head")):
            what = f"{type(insert).__name__} at {site.name or site.kind}"
            raise UsageError(
                f"{what} cannot be stored as a GGUF adapter",
                "LoRA on matrices that the file stores separately",
                "merge it with to='gguf'",
            )
    state: dict[str, Tensor] = {}
    factors, scale = factors_of(base.adapters[adapter])
    alpha = scale * len(next(iter(factors.values()))[0])
    for module, (A, B) in factors.items():
        name = names.file_name(f"{module}.weight", arch)
        state[f"{name}.lora_a"] = A.T if name == "token_embd.weight" else A
        share = scale * len(A) / alpha  # llama.cpp's scale is alpha / r, with the rank of each matrix
        state[f"{name}.lora_b"] = names.to_file(B, name, arch, config) * share
    keys = {
        "general.type": "adapter",
        "general.name": adapter,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    forms = dict.fromkeys(state, "f32")
    file = f"{adapter}-lora.gguf"
    _write(folder / file, arch.name, keys, state, forms, lambda name: _encoded(state[name], name, "f32"))
    return file


def label(base: "Base") -> str:
    """Return the name of a base for files."""
    return Path(base.name).name or "model"


def file_name(base: "Base", form: str) -> str:
    """Return the name of a base's file."""
    return f"{label(base)}-{form.upper()}.gguf"


def _holds(form: str, layer: QuantLinear) -> bool:
    """Return whether blocks of this type hold the layer's codes and constants as they are."""
    bits, fits = GROUPED.get(layer.scheme.name, 0), FORMS[form]
    return (
        0 < bits <= fits.bits
        and fits.minimum
        and layer.scheme.block % BLOCK == 0
        and fits.takes(layer.in_features)
    )


def _blocks(layer: QuantLinear) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (rows, blocks, 32), scale and minimum (rows, blocks) of a layer packed in groups."""
    codes = unpack_bits(layer.codes, GROUPED[layer.scheme.name])[:, : layer.in_features]
    repeat, count = layer.scheme.block // BLOCK, layer.in_features // BLOCK
    scale, minimum = (part.repeat_interleave(repeat, 1)[:, :count] for part in (layer.scale, layer.minimum))
    return codes.unflatten(1, (-1, BLOCK)).cpu(), scale.cpu(), minimum.cpu()


def _form(name: str, tensor: Tensor, wanted: str, dtype: torch.dtype) -> str:
    """Return the type of one tensor."""
    if tensor.dim() == 1:
        return "f32"
    if not FORMS[wanted].takes(tensor.shape[1]):
        return "bf16" if dtype == torch.bfloat16 else "f16"
    coarse = 0 < FORMS[wanted].bits < LARGEST_BITS
    return "q8_0" if coarse and name in TABLES else wanted


def _encoded(values: Tensor, name: str, form: str) -> Tensor:
    """Return the bytes of a tensor. Raises ModelError if fp16 is too narrow for it."""
    stored = encode(values.reshape(-1, values.shape[-1]), form)
    parts = [decode(stored, form)] if FORMS[form].dtype is not None else [*unpack(stored, form)[1:]]
    if not all(torch.isfinite(part).all() for part in parts if part is not None):
        raise ModelError(
            f"{name} does not fit into {form}: it has values beyond fp16",
            "values that fp16 can hold",
            "use type='bf16'",
        )
    return stored


def _write(
    path: Path,
    arch: str,
    keys: dict[str, Any],
    state: dict[str, Tensor],
    forms: dict[str, str],
    stored: Callable[[str], Tensor],
) -> None:
    """Write the header, then the bytes of one tensor after the other.

    Raises MachineError, with the bytes that are needed, where the system does not let us.
    """
    from gguf import GGMLQuantizationType, GGUFWriter  # late: an extra

    writer, needed = GGUFWriter(path, arch), 0
    for key, value in keys.items():
        _put(writer, key, value)
    for name, tensor in state.items():
        size = FORMS[forms[name]].row_bytes(tensor.shape[-1])
        shape = (*tensor.shape[:-1], size)
        count = tensor.numel() // tensor.shape[-1] * size
        kind = GGMLQuantizationType(FORMS[forms[name]].number)
        writer.add_tensor_info(name, shape, torch.empty(0, dtype=torch.uint8).numpy().dtype, count, kind)
        needed += count
    with named_errors("while writing it", path, needed):
        writer.write_header_to_file()
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in state:
                _append(writer, stored(name))
        finally:
            writer.close()


def _append(writer: Any, tensor: Tensor) -> None:
    """Write the bytes of a tensor. gguf's own way is numpy's tofile, whose errors do not say the reason."""
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    file.write(tensor.reshape(-1).numpy().data)
    writer.write_padding(file, tensor.nbytes)


def _put(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp expects."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)
