"""Find tensors that hold a NaN or an infinity, and say so in one way."""

from collections.abc import Iterable

import torch
from torch import Tensor

from graft.errors import GraftError, listed


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinity; integers never do. It makes no copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor.detach())  # a NaN anywhere is the result of both
    return bool(torch.isfinite(lowest) and torch.isfinite(highest))


def is_moderate(tensor: Tensor) -> bool:
    """Return whether no number of a tensor is above half the largest of its dtype: a sum would overflow."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor.detach())
    return bool(max(-lowest, highest) <= torch.finfo(tensor.dtype).max / 2)  # not for a NaN


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors if not is_finite(tensor)]


def not_finite_error(
    names: Iterable[str], error: type[GraftError], remedy: str, where: object = ""
) -> GraftError:
    """Return the error for these tensors.  where: the file, folder or step that they belong to."""
    place = f"{where}: " if str(where) else ""
    return error(f"{place}NaN or infinity in {listed(names, 3)}", "finite values", remedy)


def require_finite(
    tensors: Iterable[tuple[str, Tensor]], error: type[GraftError], remedy: str, where: object = ""
) -> None:
    """Raise `error`, naming them, if any of the tensors holds a NaN or an infinity."""
    if names := not_finite(tensors):
        raise not_finite_error(names, error, remedy, where)
