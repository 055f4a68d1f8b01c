"""GPTQ: choose codes column by column, so that a layer's answers to calibration inputs change least.

    H = 2 X Xᵀ + λI           X (in, tokens): what enters the layer;  λ = 1 % of the mean diagonal of 2 X Xᵀ
    U = upper Cholesky factor of H⁻¹
    columns j = 0, 1, ...:    scale and minimum of a group, from its weights as they are when it is reached;
                              e = (w_j − ŵ_j) / U_jj;  w_k ← w_k − e U_jk for all k > j

Frantar et al. 2022 (2210.17323), in the order of the columns (act-order off), so that groups stay neighbours.
A model is done block by block: only the inputs of one block for all calibration rows, and its Hessians, are
kept besides the weights. Later blocks see the answers of the packed earlier ones. Layers of one block that
read the same tensor share its Hessian.
Differs: the errors of a group reach the columns after it once the group is done, not every 128 columns,
because the next group's constants depend on them; a layer that no calibration row enters is rounded to
nearest.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from graft.errors import UsageError
from graft.kernels.groups import constants, nearest, pack_bits
from graft.quant.replace import blocks, damaged, replace
from graft.quant.scheme import GROUPED, Scheme

DAMPING = 0.01
Batch = dict[str, Any]  # keywords of the model


def factor(hessian: Tensor, damping: float = DAMPING) -> Tensor | None:
    """Return U of a Hessian (in, in) of any scale; None if it has seen no input, or none that is finite.

    The damping grows tenfold as long as rounding makes the matrix indefinite.
    """
    mean = hessian.diagonal().mean()
    if not 0 < mean < torch.inf:
        return None
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and not failed_too:
            return upper
        damping *= 10


def choose(weight: Tensor, scheme: Scheme, U: Tensor | None) -> dict[str, Tensor] | None:
    """Return the tensors of a packed weight (out, in), as `Scheme.quantise` does, computed in U's dtype."""
    if U is None or not torch.isfinite(weight).all():
        return scheme.quantise(weight)
    bits = GROUPED[scheme.name]
    block = scheme.block
    left = weight.to(U.dtype, copy=True)
    codes = torch.empty(left.shape, dtype=torch.uint8, device=left.device)
    groups = []
    for start in range(0, left.shape[1], block):
        group = slice(start, min(start + block, left.shape[1]))
        scale, minimum = constants(left[:, group], bits)
        groups.append((scale, minimum))
        errors = _columns(left[:, group], codes[:, group], U[group, group], (scale, minimum, bits))
        left[:, group.stop :].addmm_(errors, U[group, group.stop :], alpha=-1)
    scales, minima = (torch.stack(part, dim=1) for part in zip(*groups, strict=True))
    if not (torch.isfinite(scales).all() and torch.isfinite(minima).all()):
        return None
    return {"codes": pack_bits(codes, bits), "scale": scales, "minimum": minima}


def _columns(left: Tensor, codes: Tensor, U: Tensor, group: tuple[Tensor, Tensor, int]) -> Tensor:
    """Choose the codes of one group, column by column; return e (out, columns).

    Changes `left` and `codes`.
    """
    scale, minimum, bits = group
    errors = torch.empty_like(left)
    for j in range(left.shape[1]):
        code = nearest(left[:, j], scale, minimum, bits)
        codes[:, j] = code
        errors[:, j] = (left[:, j] - (code * scale.to(left) + minimum.to(left))) / U[j, j]
        left[:, j + 1 :].addr_(errors[:, j], U[j, j + 1 :], alpha=-1)
    return errors


@torch.no_grad()
def quantise_calibrated(
    model: nn.Module, batches: Sequence[Batch], scheme: Scheme, tell: Callable[[int, int], None] | None = None
) -> nn.Module:
    """Pack the linears of the blocks in place by GPTQ; return the model.

    batches: keywords of calibration forwards, without padding (use_cache=False if the model knows it).
    tell: called with the number of blocks done and of all.
    Raises UsageError if there is nothing to calibrate by; ModelError, naming the tensor, for a weight with a
    NaN or an infinity.
    """
    named = blocks(model)
    if not (scheme.grouped and batches and named):
        layers_in_blocks = f"{len(named)} blocks of {type(model).__name__}"
        given = f"{len(batches)} calibration rows for {scheme.name} and {layers_in_blocks}"
        raise UsageError(
            given,
            f"some rows, a scheme of groups ({', '.join(GROUPED)}) and a transformer",
            "choose int4 and name rows to calibrate by",
        )
    calls = _recorded(model, list(named), batches)
    states: list[Tensor] = []
    for done, (name, linears) in enumerate(named.items(), 1):
        block, block_calls = model.get_submodule(name), calls.pop(name)
        states = [call.x if call.x is not None else x for call, x in zip_longest(block_calls, states)]
        hessians = _Hessians(linears)
        with hessians.watching():
            _answers(block, states, block_calls)
        bad = hessians.pack(model, scheme)
        if bad:
            raise damaged(bad)
        states = _answers(block, states, block_calls)
        if tell is not None:
            tell(done, len(named))
    return model


@dataclass
class _Call:
    """How a block was called.  x: the hidden state, kept where no block before it gives it."""

    x: Tensor | None
    args: list[Any]
    kwargs: dict[str, Any]


def _recorded(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, list[_Call]]:
    """Return the calls of every block, one per batch. Masks and positions are shared between them."""
    calls: dict[str, list[_Call]] = {name: [] for name in names}

    def record(
        name: str, keep: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        others = dict(kwargs)
        x, *rest = args or (others.pop("hidden_states"),)
        calls[name].append(_Call(x if keep else None, rest, others))

    with ExitStack() as hooks:
        for name, before in zip(names, [None, *names], strict=False):
            hook = partial(record, name, not _follows(name, before))
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True).remove)
        for batch in batches:
            model(**batch)
    return calls


def _follows(name: str, before: str | None) -> bool:
    """Return whether a block is the next one of the list that `before` lies in."""
    path, _, number = name.rpartition(".")
    return before == f"{path}.{int(number) - 1}"


def _answers(block: nn.Module, states: Sequence[Tensor], calls: Sequence[_Call]) -> list[Tensor]:
    outputs = [block(x, *call.args, **call.kwargs) for x, call in zip(states, calls, strict=True)]
    return [y[0] if isinstance(y, tuple) else y for y in outputs]


class _Hessians:
    """X Xᵀ of the linears of one block, one for all that read the same tensor."""

    def __init__(self, linears: Sequence[tuple[str, nn.Module]]) -> None:
        self.linears = linears
        self.owner: dict[str, str] = {}  # linear -> the first that reads the same tensor
        self.sums: dict[str, Tensor] = {}
        self._entered: list[tuple[Tensor, str]] = []  # what the last two of these read, still alive

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let every forward of a linear inside the block add to the sums."""
        with ExitStack() as hooks:
            for name, module in self.linears:
                hooks.callback(module.register_forward_pre_hook(partial(self._see, name)).remove)
            yield
        self._entered.clear()

    def _see(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        same = next((owner for tensor, owner in self._entered if tensor is x), name)
        if self.owner.setdefault(name, same) != name:
            return
        self._entered = [*self._entered[-1:], (x, name)]
        flat = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
        if name not in self.sums:
            self.sums[name] = flat.new_zeros(flat.shape[1], flat.shape[1])
        self.sums[name].addmm_(flat.T, flat)

    def pack(self, model: nn.Module, scheme: Scheme) -> list[str]:
        """Replace the linears by packed layers; return the names of weights that are not finite."""
        bad = []
        for owner in dict.fromkeys(self.owner.get(name, name) for name, _ in self.linears):
            U = factor(self.sums.pop(owner)) if owner in self.sums else None
            for name, module in self.linears:
                if self.owner.get(name, name) == owner:
                    packed = replace(
                        model, name, module, scheme, quantise=partial(choose, scheme=scheme, U=U)
                    )
                    bad += [] if packed else [f"{name}.weight"]
        return bad
