"""int8: each row of a weight as whole numbers in ±127 and one absmax.

    code = round(w · 127 / absmax)        ŵ = code · absmax / 127

Weight only: y = x Ŵᵀ in x's dtype. The weights are those of LLM.int8() (Dettmers et al. 2022, arXiv
2208.07339); its quantised activations and its 16-bit path for outlier features are not part of it, because
they exist to run the product in int8 arithmetic, which this format does not do.
"""

from torch import Tensor

from graft import kernels


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (out, in) -> codes (out, in) int8 and absmax (out, 1) fp32.

    A NaN or infinity shows in its row's absmax.
    """
    return kernels.find("quantise_int8", weight.device.type)(weight)
