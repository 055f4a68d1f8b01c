"""Structural pruning: a narrow copy of a stack of blocks is filled with rows and columns of the base's matrices.

    W' = W[rows][:, columns]

Kept of the residual stream: the dimensions with the largest sum of squared weights over all matrices that
read or write them, the same in every block. Kept inside a feed-forward part: its units with the largest
weights. Kept of attention
heads: one position in each band of neighbours, the same in all heads of a part, halves of a head together: a
rotary embedding turns position i with i + half, the slower the larger i, and a narrow head has every R-th of
these speeds. What has no counterpart in the base, and experts with their router, keep the random start of
their class.
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
    """A sublayer: readers take the residual stream in, the writer gives back to it. unit: what repeats inside, a head
    or the whole width."""

    readers: list[Site]
    writer: Site
    unit: int
    heads: bool

    @property
    def sites(self) -> list[Site]:
        """All its projections."""
        return [*self.readers, self.writer]

    def outer(self) -> torch.Tensor:
        """Return (width,): the sum of squared weights around each dimension of the residual stream."""
        return _squares(self.writer).sum(1) + torch.stack(
            [_squares(site).sum(0) for site in self.readers]
        ).sum(0)

    def inner(self, narrow_head: int, narrow_width: int) -> torch.Tensor:
        """Return the positions of a unit that are kept."""
        around = [_squares(site).sum(1) for site in self.readers] + [_squares(self.writer).sum(0)]
        score = torch.stack([values.view(-1, self.unit).sum(0) for values in around]).sum(0)
        return _banded(score, narrow_head) if self.heads else _top(score, narrow_width)


def parts(stack: Site, block: Site, sites: Sequence[Site]) -> Iterator[Part]:
    """Yield the sublayers of a block whose readers all read the residual stream."""
    config = stack.module.config
    writers = {site.name: site.kind for site in sites if site.kind in SUBLAYERS}
    found = defaultdict(list)
    for site in sites:
        if site.kind == "linear" and site.name.startswith(block.name + "."):
            found[part_of(site.name[len(block.name) + 1 :])].append(site)
    for linears in found.values():
        writer = next((site for site in linears if site.name in writers), None)
        if writer is not None:
            heads = writers[writer.name] != "mlp"
            unit = head_width(config) if heads else writer.in_features
            readers = [site for site in linears if site is not writer]
            if all(
                site.in_features == config.hidden_size and site.out_features % unit == 0 for site in readers
            ):
                yield Part(readers, writer, unit, heads)


@torch.no_grad()
def pruned(
    nets: Sequence[Narrow], places: Sequence[tuple[Site, list[Site]]], sites: Sequence[Site]
) -> torch.Tensor:
    """Fill narrow stacks from the base; all keep the same dimensions of the residual stream.

    places: the stack and the blocks that each accompanies.  Returns the choice (narrow, width): rows of the
    identity.
    """
    found = [[list(parts(stack, block, sites)) for block in blocks] for stack, blocks in places]
    around = [part.outer() for blocks in found for inner in blocks for part in inner]
    kept = _top(torch.stack(around).sum(0), nets[0].width)
    for net, (stack, blocks), inner in zip(nets, places, found, strict=True):
        _copy_rest(net.net, stack.module, [kept])  # also what a stack has once, in its first block
        for small, block, own in zip(net.blocks, blocks, inner, strict=True):
            _fill(small, block, own, kept, head_width(net.net.config))
    choice = torch.zeros(len(kept), len(around[0]), device=kept.device)
    return choice.scatter_(1, kept[:, None], 1.0)


def _fill(small: nn.Module, block: Site, own: Sequence[Part], kept: torch.Tensor, head: int) -> None:
    chosen = [kept]
    for part in own:
        twins = {site.name: Site(site.name[len(block.name) + 1 :], "linear", small) for site in part.sites}
        inner = part.inner(head, twins[part.writer.name].in_features)
        chosen += [inner] if part.heads else []
        for site in part.readers:
            _copy(twins[site.name], site, _spread(inner, site.out_features, part.unit), kept)
        _copy(twins[part.writer.name], part.writer, kept, _spread(inner, part.writer.in_features, part.unit))
    _copy_rest(small, block.module, chosen)


def _copy(small: Site, site: Site, rows: torch.Tensor, columns: torch.Tensor) -> None:
    small.weight().copy_(site.weight()[rows][:, columns])
    bias, own = site.bias(), small.bias()
    if bias is not None and own is not None:
        own.copy_(bias[rows])


def _copy_rest(small: nn.Module, module: nn.Module, chosen: Sequence[torch.Tensor]) -> None:
    """Copy norms, by the choice that has their width, and tables that are not narrower."""
    own = dict(small.named_parameters())
    for name, parameter in module.named_parameters():
        if name not in own or kind_of(module.get_submodule(name.rpartition(".")[0])) == "linear":
            continue
        index = next((index for index in chosen if index.shape == own[name].shape), None)
        if own[name].shape == parameter.shape:
            own[name].copy_(parameter)
        elif index is not None:
            own[name].copy_(parameter[index])


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
