"""Structural pruning: fill a narrow copy of a stack of blocks with rows and columns of the base's matrices.

    W' = W[rows][:, columns]

    residual stream    keep the dimensions with the largest sum of squared weights over all matrices that read
                       or write them, the same in every block
    feed-forward       keep the units with the largest weights
    attention head     keep one position in each band of neighbours, the same in all heads of a part

The two halves of a head are pruned together: a rotary embedding turns position i with i + half, the slower
the larger i, and a narrow head has every R-th of these speeds. Modules without a counterpart in the base, and
experts with their router, keep the random start of their class.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from graft.core.anatomy import kind_of, part_of
from graft.core.site import SUBLAYERS, Site
from graft.layers.narrow_stack import Narrow, head_width


class Part(NamedTuple):
    """A sublayer: its readers read the residual stream, its writer writes to it.

    unit: width of what repeats inside: a head, or the whole.  heads: whether it is a head.
    """

    readers: list[Site]
    writer: Site
    unit: int
    heads: bool

    @property
    def sites(self) -> list[Site]:
        """All projections of the sublayer."""
        return [*self.readers, self.writer]

    def outer(self) -> torch.Tensor:
        """Return (width,): the sum of squared weights that read or write each dimension of the stream."""
        read = torch.stack([_squares(site).sum(0) for site in self.readers]).sum(0)
        return _squares(self.writer).sum(1) + read

    def inner(self, narrow_head: int, narrow_width: int) -> torch.Tensor:
        """Return the positions of a unit that are kept."""
        around = [_squares(site).sum(1) for site in self.readers] + [_squares(self.writer).sum(0)]
        score = torch.stack([values.view(-1, self.unit).sum(0) for values in around]).sum(0)
        return _banded(score, narrow_head) if self.heads else _top(score, narrow_width)


def parts(stack: Site, block: Site, sites: Sequence[Site]) -> Iterator[Part]:
    """Yield the sublayers of a block whose readers all read the residual stream."""
    config = stack.module.config
    writers = {site.name: site.kind for site in sites if site.kind in SUBLAYERS}
    by_part = defaultdict(list)
    for site in sites:
        if site.kind == "linear" and site.name.startswith(block.name + "."):
            by_part[part_of(site.name[len(block.name) + 1 :])].append(site)
    for linears in by_part.values():
        writer = next((site for site in linears if site.name in writers), None)
        if writer is not None:
            heads = writers[writer.name] != "mlp"
            unit = head_width(config) if heads else writer.in_features
            readers = [site for site in linears if site is not writer]
            if all(s.in_features == config.hidden_size and s.out_features % unit == 0 for s in readers):
                yield Part(readers, writer, unit, heads)


@torch.no_grad()
def pruned(
    nets: Sequence[Narrow], places: Sequence[tuple[Site, list[Site]]], sites: Sequence[Site]
) -> torch.Tensor:
    """Fill narrow stacks from the base; all keep the same dimensions of the residual stream.

    places: for each narrow stack, the stack and the blocks that it accompanies.
    Returns the choice (narrow, width): rows of the identity.
    """
    by_block = [[list(parts(stack, block, sites)) for block in blocks] for stack, blocks in places]
    around = [part.outer() for blocks in by_block for sublayers in blocks for part in sublayers]
    kept = _top(torch.stack(around).sum(0), nets[0].width)
    for net, (stack, blocks), by_number in zip(nets, places, by_block, strict=True):
        _copy_rest(net.net, stack.module, [kept])  # also what a stack has once, in its first block
        for small, block, sublayers in zip(net.blocks, blocks, by_number, strict=True):
            _fill(small, block, sublayers, kept, head_width(net.net.config))
    choice = torch.zeros(len(kept), len(around[0]), device=kept.device)
    return choice.scatter_(1, kept[:, None], 1.0)


def _fill(small: nn.Module, block: Site, sublayers: Sequence[Part], kept: torch.Tensor, head: int) -> None:
    """Fill a narrow block.  kept: dimensions of the residual stream.  head: width of a narrow head."""
    chosen = [kept]
    for part in sublayers:
        twins = {site.name: Site(site.name[len(block.name) + 1 :], "linear", small) for site in part.sites}
        inner = part.inner(head, twins[part.writer.name].in_features)
        chosen += [inner] if part.heads else []
        for site in part.readers:
            _copy(twins[site.name], site, _spread(inner, site.out_features, part.unit), kept)
        _copy(twins[part.writer.name], part.writer, kept, _spread(inner, part.writer.in_features, part.unit))
    _copy_rest(small, block.module, chosen)


def _copy(small: Site, site: Site, rows: torch.Tensor, columns: torch.Tensor) -> None:
    small.weight().copy_(site.weight()[rows][:, columns])
    bias, narrow_bias = site.bias(), small.bias()
    if bias is not None and narrow_bias is not None:
        narrow_bias.copy_(bias[rows])


def _copy_rest(small: nn.Module, module: nn.Module, chosen: Sequence[torch.Tensor]) -> None:
    """Copy norms, by the choice that has their width, and tables that are as wide in the narrow stack."""
    narrow = dict(small.named_parameters())
    for name, parameter in module.named_parameters():
        if name not in narrow or kind_of(module.get_submodule(name.rpartition(".")[0])) == "linear":
            continue
        index = next((index for index in chosen if index.shape == narrow[name].shape), None)
        if narrow[name].shape == parameter.shape:
            narrow[name].copy_(parameter)
        elif index is not None:
            narrow[name].copy_(parameter[index])


def _squares(site: Site) -> torch.Tensor:
    return site.weight().detach().float().square()


def _top(score: torch.Tensor, count: int) -> torch.Tensor:
    return score.topk(count).indices.sort().values


def _banded(score: torch.Tensor, count: int) -> torch.Tensor:
    """Return the best position of each band of one half, and the same positions of the other half."""
    half = len(score) // 2
    bands = score.view(2, half).sum(0).tensor_split(count // 2)
    starts = torch.tensor([0] + [len(band) for band in bands[:-1]], device=score.device).cumsum(0)
    best = torch.stack([band.argmax() for band in bands]) + starts
    return torch.cat([best, best + half])


def _spread(inner: torch.Tensor, width: int, unit: int) -> torch.Tensor:
    """Return the positions of one unit in all units of a width."""
    return (torch.arange(0, width, unit, device=inner.device)[:, None] + inner).flatten()
