"""What adapters add to weights that no linear owns: those of a router, and of all experts of a mixture.

Where transformers runs experts through its registry, an insert adds to the products of each token with its
experts (`graft.quant.experts`), so that the weight itself is never touched. Elsewhere the module runs with
the changed weight. A batch of several adapters then runs a router once for every adapter; an expert without
the registry does not say whose tokens it gets, so there such a batch is refused.
"""

from typing import Any

import torch
from torch import nn

from graft.base.host import Host
from graft.base.select import pick
from graft.core.insert import WeightShift
from graft.core.route import Route, current
from graft.core.site import Site
from graft.errors import AdapterError
from graft.quant import experts
from graft.quant.experts import Order

Seats = list[tuple[Site, WeightShift]]


class WeightShifts(Host):
    """All modules of one model to whose weights adapters add something."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._owners: dict[str, Owner] = {}

    def add(self, name: str, site: Site, insert: WeightShift) -> None:
        self._owners.setdefault(site.path, Owner(site)).add(name, site, insert)
        if any(owner.in_products for owner in self._owners.values()):
            experts.use_ours(self._model)

    def remove(self, name: str) -> None:
        for path, owner in list(self._owners.items()):
            owner.remove(name)
            if owner.empty:
                del self._owners[path]
        if not any(owner.in_products for owner in self._owners.values()):
            experts.use_its_own(self._model)


class Owner:
    """One module, and what adapters add to its weights.

    products, weights: seats by adapter, of matrices of experts and of any other weight.
    """

    def __init__(self, site: Site) -> None:
        self._path, self._module = site.path, site.module
        self._products: dict[str, Seats] = {}
        self._weights: dict[str, Seats] = {}
        self._handles: list[Any] = []
        self._before: dict[str, Any] = {}  # the module's own weights, while it runs with others

    @property
    def empty(self) -> bool:
        """Whether nothing is added here."""
        return not (self._products or self._weights)

    @property
    def in_products(self) -> bool:
        """Whether something is added to products of experts."""
        return bool(self._products)

    def add(self, name: str, site: Site, insert: WeightShift) -> None:
        """Seat an insert of an adapter."""
        if site.leaf in experts.projections(self._module):
            self._products.setdefault(name, []).append((site, insert))
            experts.corrections[self._module] = self._correct
            return
        if not self._weights:
            before = self._module.register_forward_pre_hook(self._put, with_kwargs=True)
            after = self._module.register_forward_hook(self._take, with_kwargs=True, always_call=True)
            self._handles = [before, after]
        self._weights.setdefault(name, []).append((site, insert))

    def remove(self, name: str) -> None:
        """Unseat an adapter."""
        self._products.pop(name, None)
        self._weights.pop(name, None)
        if not self._products:
            experts.corrections.pop(self._module, None)
        while self._handles and not self._weights:
            self._handles.pop().remove()

    def _correct(self, projection: str, x: torch.Tensor, order: Order) -> torch.Tensor | None:
        """Return what the adapters of this forward add to the products with one projection."""
        route = current()
        if route is None:
            return None
        total = None
        for name, rows in route.parts(len(order.pairs) // order.choices):
            for site, insert in self._products.get(name or "", ()):
                if site.leaf == projection:
                    update = _of_rows(insert, x, order, rows if len(route.spans) > 1 else None)
                    total = update if total is None else total + update
        return total

    def _put(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let the module run with the weights of the one adapter of this forward."""
        route = current()
        if route is not None and len(route.spans) == 1:
            self._shift(route.names[0])

    def _shift(self, name: str | None) -> None:
        for site, insert in self._weights.get(name or "", ()):
            weight = self._module._parameters[site.leaf]
            self._before.setdefault(site.leaf, weight)
            self._module._parameters[site.leaf] = weight + site.stored(insert.shift()).to(weight.dtype)

    def _back(self) -> None:
        self._module._parameters.update(self._before)
        self._before = {}

    def _take(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Give the module its own weights back; let it run again for the rows of every other adapter."""
        self._back()
        route = current()
        if route is None or len(route.spans) == 1 or not any(name in self._weights for name in route.names):
            return None
        count = len(args[0] if args else next(iter(kwargs.values())))
        self._check_mixed(route, count)
        pieces = []
        for name, rows in route.parts(count):
            self._shift(name)
            try:
                keywords = {key: pick(value, rows, count) for key, value in kwargs.items()}
                pieces.append(module.forward(*(pick(value, rows, count) for value in args), **keywords))
            finally:
                self._back()
        if isinstance(output, torch.Tensor):
            return torch.cat(pieces)
        return type(output)(torch.cat(parts) for parts in zip(*pieces, strict=True))

    def _check_mixed(self, route: Route, count: int) -> None:
        stacked = [s.name for seats in self._weights.values() for s, _ in seats if s.experts > 1]
        if stacked or count % route.rows:
            raise AdapterError(
                f"rows with several adapters in one batch, at {(stacked or [self._path])[0]}",
                "one adapter for all rows: these experts do not say whose tokens they get",
                "run the rows of each adapter by themselves",
            )


def _of_rows(insert: WeightShift, x: torch.Tensor, order: Order, rows: slice | None) -> torch.Tensor:
    """Return what an insert adds for the tokens of these rows, zero for all others.  rows: None for all."""
    if rows is None:
        return insert.added(x, order)
    chosen = ((order.token >= rows.start) & (order.token < rows.stop)).nonzero()[:, 0]
    update = insert.added(x[chosen], order.only(chosen))
    return update.new_zeros(len(x), update.shape[1]).index_copy(0, chosen, update)
