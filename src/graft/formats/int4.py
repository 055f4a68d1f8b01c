"""Read folders of GPTQ, AWQ and compressed-tensors as our int4; `whole` says how exactly."""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError
from graft.formats import awq, compressed_tensors, gptq
from graft.formats.whole import Whole

FORMATS: dict[str, ModuleType] = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed_tensors}


def layers(state: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Callable[[], Whole]]:
    """Return {path: function that reads it} of every packed layer.

    state: key -> tensor, or what gives it by `[...]` (a safetensors slice).  config: the folder's
    quantization_config.
    Raises ModelError for settings that we cannot read.
    """
    form = FORMATS[config["quant_method"]]
    form.check(config)
    mark = f".{form.PARTS[0]}"
    found = [key.removesuffix(mark) for key in state if key.endswith(mark)]
    if not found:
        raise ModelError(
            f"no tensor {mark[1:]} in a checkpoint of {config['quant_method']}",
            "packed layers",
            "load it without quantization_config in config.json",
        )
    return {name: functools.partial(_layer, name, state, form, config) for name in found}


def convert(state: Mapping[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turn a checkpoint into our tensors, and the keywords of `GraftQuantConfig` for them.

    What is not packed passes untouched.
    """
    found = layers(state, config)
    parts = FORMATS[config["quant_method"]].PARTS
    taken = {f"{name}.{part}" for name in found for part in parts}
    ours = {key: value for key, value in state.items() if key not in taken}
    modules = {}
    for name, read in found.items():
        layer = read()
        ours |= {f"{name}.{part}": tensor for part, tensor in layer.tensors().items()}
        modules[name] = {"block": layer.block}
    return ours, {"scheme": "int4", "modules": modules}


def _layer(name: str, state: Mapping[str, Any], form: ModuleType, config: dict[str, Any]) -> Whole:
    parts: dict[str, Tensor] = {
        part: state[f"{name}.{part}"][...] for part in form.PARTS if f"{name}.{part}" in state
    }
    try:
        if parts[form.PARTS[0]].dtype == torch.int32:
            layer: Whole = form.unpack(name, parts, config)
            groups = -(-layer.codes.shape[1] // layer.group)
            if layer.zeros.shape == layer.scale.shape == (len(layer.codes), groups):
                return layer
    except (KeyError, RuntimeError):  # a part is not there, or its shape means nothing
        pass
    shapes = ", ".join(f"{part} {tuple(tensor.shape)} {tensor.dtype}" for part, tensor in parts.items())
    raise ModelError(
        f"{name}: {shapes}",
        f"4-bit tensors of {config['quant_method']} that fit together",
        "download it again, or load the original model with quant='int4'",
    )
