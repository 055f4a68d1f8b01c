"""Connect to transformers: any model class packs its weights while they stream in, and loads them packed.

    class.from_pretrained(..., quantization_config=GraftQuantConfig("nf4"))

The skeleton is on the meta device. When a linear's weight arrives, it is quantised and the linear replaced at
once, so that two large weights never exist at the same time. On disk a packed layer has its own names
(`q_proj.codes`, `q_proj.absmax`, ...), and `quantization_config: {quant_method: graft}` brings it back.
Import this module to register; it uses transformers' interfaces `ConversionOps` and `HfQuantizer`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, PrefixChange, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from graft.errors import ModelError, listed
from graft.quant.experts import PackedExperts, packed_experts, seat, use_ours
from graft.quant.linear import QuantLinear
from graft.quant.origin import of_blocks
from graft.quant.replace import (
    damaged,
    dequantise_model,
    is_conv1d,
    is_linear,
    matrix,
    outline,
    packable,
    packable_experts,
    quantise_model,
    replace,
    replace_experts,
)
from graft.quant.scheme import Scheme

METHOD = "graft"


@register_quantization_config(METHOD)
class GraftQuantConfig(QuantizationConfigMixin):
    """How transformers is told of our packed weights.

    scheme, block, double: see `Scheme`.  skip: names of linears to leave alone, whole paths or ends of them.
    modules: path -> {block, double} of the packed layers, if they are not those of the rule in `replace`.
    experts: the rule packs experts too; folders that do not say so were written before it did.
    origin: what tells the weights that were packed (`graft.quant.origin`), where that is known.
    """

    def __init__(
        self,
        scheme: str = "nf4",
        block: int = 0,
        double: bool = True,
        skip: list[str] | None = None,
        modules: dict[str, dict[str, Any]] | None = None,
        experts: bool = True,
        origin: str | None = None,
        **_: Any,  # what later versions may add
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' list is of its own methods
        usual = Scheme(scheme, block, double)
        self.scheme = usual.name
        self.block = usual.block
        self.double = usual.double
        self.skip, self.modules, self.experts = skip or [], modules, experts
        self.origin = origin if isinstance(origin, str) else None

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return the config that a folder's config.json has."""
        return super().from_dict({"experts": False, **config_dict}, return_unused_kwargs, **kwargs)

    def kind(self, module: str = "") -> Scheme:
        """Return the Scheme of all layers, or of one that has its own."""
        settings = (self.modules or {}).get(module, {})
        return Scheme(self.scheme, settings.get("block", self.block), settings.get("double", self.double))

    def names(self, model: nn.Module) -> dict[str, str]:
        """Return {path in `model`: key in `modules`} of every layer to be packed.

        By the rule of `replace` both are the path.
        """
        if self.modules is None:
            rule = [*dict(packable(model)), *(packable_experts(model) if self.experts else ())]
            return {name: name for name in rule if not _ends(name, self.skip)}
        linears = [name for name, module in model.named_modules() if is_linear(module)]
        linears += packable_experts(model)
        prefix = getattr(model, "base_model_prefix", "") + "."
        spelt = {key: key for key in self.modules} | {key.removeprefix(prefix): key for key in self.modules}
        spelt |= {prefix + key: key for key in self.modules}  # saved without its head, loaded with one
        return {name: spelt[name] for name in linears if name in spelt}


def _ends(name: str, ends: list[str]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)


class _QuantiseOnArrival(ConversionOps):
    """Packs the weight of one linear, and puts the packed layer in the linear's place."""

    def __init__(self, quantizer: "GraftQuantizer") -> None:
        self.quantizer = quantizer

    def convert(  # type: ignore[override]  # transformers passes everything else by name
        self,
        input_dict: dict[str, Any],
        *_: Any,
        model: nn.Module,
        missing_keys: set[str] | None = None,
        **__: Any,
    ) -> dict[str, Tensor]:
        arrived: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if key in self.quantizer.experts:
                if self.quantizer.pack_experts(model, key, weight):
                    arrived |= {
                        f"{key}.{part}": t for part, t in model.get_submodule(key).state_dict().items()
                    }
                    (missing_keys or set()).discard(key)
            elif self.quantizer.pack(model, key.removesuffix(".weight"), weight):
                layer: Any = model.get_submodule(key.removesuffix(".weight"))
                stem = key.removesuffix("weight")
                arrived |= {stem + part: tensor for part, tensor in layer.packed().items()}
                (missing_keys or set()).discard(key)
        return arrived


@register_quantizer(METHOD)
class GraftQuantizer(HfQuantizer):
    """Quantises on load, or builds the packed layers that a quantised checkpoint fills."""

    quantization_config: GraftQuantConfig

    def __init__(self, quantization_config: GraftQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Faults are collected and raised after loading: an exception inside an operation would lose its type.
        self.bad: list[str] = []
        self.misshapen: list[str] = []
        self.targets: set[str] = set()
        self.experts: dict[str, tuple[nn.Module, str]] = {}

    @property
    def quantized_element_size(self) -> float:
        return self.quantization_config.kind().bits / 8

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        return param_name in self.targets or param_name in self.experts

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantiseOnArrival(self)

    def pack(self, model: nn.Module, name: str, weight: Tensor) -> bool:
        """Pack one linear with the values that arrived; return False if they are not finite or do not fit."""
        module: Any = model.get_submodule(name)
        if module.weight.shape != weight.shape:
            shapes = f"{tuple(weight.shape)} in the file and {tuple(module.weight.shape)} by config.json"
            self.misshapen.append(f"{name}.weight is {shapes}")
            return False
        if not replace(model, name, module, self.quantization_config.kind(name), weight):
            self.bad.append(f"{name}.weight")
            return False
        forget = getattr(weight, "forget", None)  # of `graft.models.mapped`
        if forget is not None:
            forget()
        return True

    def pack_experts(self, model: nn.Module, name: str, weight: Tensor) -> bool:
        """Pack a parameter of experts with the values that arrived; return False as `pack` does."""
        module, leaf = self.experts[name]
        held = getattr(module, leaf)
        if held.shape != weight.shape:
            shapes = f"{tuple(weight.shape)} in the file and {tuple(held.shape)} by config.json"
            self.misshapen.append(f"{name} is {shapes}")
            return False
        if not replace_experts(module, leaf, self.quantization_config.kind(name), weight):
            self.bad.append(name)
            return False
        return True

    def _process_model_before_weight_loading(
        self, model: nn.Module, dtype: torch.dtype | None = None, **_: Any
    ) -> None:
        names, experts = self.quantization_config.names(model), packable_experts(model)
        self.experts = {name: place for name, place in experts.items() if name in names}
        if not self.pre_quantized:
            self.targets = {f"{name}.weight" for name in names}
            return
        for name, (module, leaf) in self.experts.items():
            held: Any = getattr(module, leaf)
            kind, turned = self.quantization_config.kind(names.pop(name)), bool(module.is_transposed)
            seat(module, leaf, PackedExperts.empty(held.shape, kind, held.dtype, transposed=turned))
        for name, key in names.items():
            linear: Any = model.get_submodule(name)
            rows, columns = matrix(linear).shape
            kind = self.quantization_config.kind(key)
            layer = QuantLinear(columns, rows, kind, linear.bias, linear.weight.dtype, "meta")
            layer.transposed = is_conv1d(linear)
            model.set_submodule(name, layer)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        if self.experts:
            use_ours(model)
        if self.bad:
            raise damaged(self.bad)
        if self.misshapen:
            raise ModelError(
                listed(self.misshapen, 1), "weights and config.json of one model", "compare with the original"
            )
        return model.requires_grad_(False)  # loading makes every float tensor trainable, absmax too

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        """Note which layers are packed now, as a merge may have unpacked some.

        transformers calls it before it writes the config.
        """
        config, layers = self.quantization_config, outline(model)
        usual = {"block": config.block, "double": config.double}
        by_rule = {
            name
            for name in (*dict(packable(model)), *packable_experts(model))
            if not _ends(name, config.skip)
        }
        config.experts, config.origin = True, of_blocks(model)
        config.modules = (
            None if set(layers) == by_rule and all(v == usual for v in layers.values()) else layers
        )
        _keep_whole(model)
        return None, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return dequantise_model(model, dtype)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def _keep_whole(model: Any) -> None:
    """Keep transformers from splitting packed experts when it saves a model; plain ones it may split."""
    packed = {name.rpartition(".")[2] for name in packed_experts(model)}
    steps: Any = getattr(model, "_weight_conversions", None)
    if packed and steps is None:
        steps = [
            s
            for s in get_model_conversion_mapping(model, add_legacy=False)
            if not isinstance(s, PrefixChange)
        ]
    if packed:
        splits = [s for s in steps if isinstance(s, WeightConverter)]
        of_packed = [s for s in splits if packed & {p.rpartition(".")[2] for p in s.target_patterns}]
        model._weight_conversions = [s for s in steps if s not in of_packed]


def quantise_pretrained(model: nn.Module, config: GraftQuantConfig) -> nn.Module:
    """Quantise a transformers model in memory, so that its `save_pretrained` writes a quantised folder."""
    return packed_by(quantise_model(model, config.kind()), config)


def packed_by(model: Any, config: GraftQuantConfig) -> nn.Module:
    """Tell a transformers model that its layers were packed in memory."""
    model.hf_quantizer = GraftQuantizer(config, pre_quantized=False)
    model.config.quantization_config = config
    model.is_quantized, model.quantization_method = True, METHOD
    packed: nn.Module = model
    return packed
