"""Number formats of frozen weights and optimizer states: nf4, fp4, int8, integers in groups, 8-bit maps."""

from graft.quant.dynamic import dequantise_state, quantise_state
from graft.quant.linear import QuantLinear, is_packed
from graft.quant.replace import dequantise_model, packed_layers, quantise_model, unpacked
from graft.quant.scheme import Scheme

__all__ = [
    "QuantLinear",
    "Scheme",
    "dequantise_model",
    "dequantise_state",
    "is_packed",
    "packed_layers",
    "quantise_model",
    "quantise_state",
    "unpacked",
]
