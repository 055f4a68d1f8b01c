"""Joint: the one hook at an occupied module. It hands every span of rows to the inserts of its adapter.

A sublayer's x entered another module than the one its y left. A second hook, there, leaves x in the Route for the
length of the sublayer.
"""

from typing import Any

import torch

from graft.insert import Insert
from graft.route import Route, current
from graft.site import Site

Seat = tuple[Site, Insert]


class Joint:
    """Occupies the module of one path, whatever kinds of sites lie there; leaves no trace when its last insert is gone."""

    def __init__(self, site: Site) -> None:
        self._root, self._name = site.root, site.name
        self._seats: dict[str, list[Seat]] = {}
        self._handles: list[Any] = []

    def add(self, name: str, site: Site, insert: Insert) -> None:
        """Seat an insert behind those that the adapter has here already."""
        self._seats.setdefault(name, []).append((site, insert))
        self.move()

    def remove(self, name: str) -> bool:
        """Unseat an adapter; True when nobody is left and the hooks are gone."""
        self._seats.pop(name, None)
        self.move()
        return not self._seats

    def move(self) -> None:
        """Hook the modules that sit here now."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._seats:
            module = self._root.get_submodule(self._name)
            self._handles = [module.register_forward_hook(self._run, with_kwargs=True)]
        for entry in {site.entry for seats in self._seats.values() for site, _ in seats if site.entry}:
            keep = self._root.get_submodule(entry).register_forward_pre_hook(self._enter)
            self._handles.append(keep)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        route = current()
        if route is not None and self._concerns(route):
            route.taps[self._name] = args[0]

    def _run(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        route = current()
        if route is None or not self._concerns(route):
            return None
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        entered = route.taps.pop(self._name, None)
        if isinstance(output, tuple):  # attention modules and T5's blocks
            return (self._spans(route, x, entered, output[0]), *output[1:])
        return self._spans(route, x, entered, output)

    def _concerns(self, route: Route) -> bool:
        return any(name in self._seats for name, _, _ in route.spans)

    def _spans(self, route: Route, x: Any, entered: Any, y: torch.Tensor) -> torch.Tensor:
        if len(route.spans) == 1:
            return self._fold(route.spans[0][0], slice(None), x, entered, y)
        k = len(y) // route.rows  # OPT flattens to B·T; beams and returned sequences repeat rows
        return torch.cat([self._fold(name, slice(a * k, b * k), x, entered, y[a * k : b * k]) for name, a, b in route.spans])

    def _fold(self, name: str | None, rows: slice, x: Any, entered: Any, y: torch.Tensor) -> torch.Tensor:
        for site, insert in self._seats.get(name, ()) if name is not None else ():
            y = insert((entered if site.entry else x)[rows], y)
        return y
