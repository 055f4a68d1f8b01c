"""Joint: the hooks at an occupied module. They hand every span of rows to the inserts of its adapter.

A sublayer's x entered another module than the one its y leaves. A hook there keeps x in the Route for the length of the
sublayer. A stack's x are the tensors among its keywords: masks and positions, as its blocks will have them. Its cache
of keys and values lies in the Route, whole: no span may cut it.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from graft.base.select import pick
from graft.core.insert import Insert
from graft.core.route import CACHE, Route, current
from graft.core.site import Site

Seat = tuple[Site, Insert]


class Joint:
    """Occupies the module of one path, whatever kinds of sites lie there; no trace stays when its last insert goes."""

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
        """Hook the modules that sit here now, as the inserts need it."""
        while self._handles:
            self._handles.pop().remove()
        seats = [seat for own in self._seats.values() for seat in own]
        module = self._root.get_submodule(self._name)
        if seats:
            first = any(site.kind == "stack" for site, _ in seats)  # before virtual tokens are cut off
            self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True, prepend=first))
        if any(insert.enters for _, insert in seats):
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
        for entry in {site.entry for site, _ in seats if site.entry}:
            self._handles.append(self._root.get_submodule(entry).register_forward_pre_hook(self._keep))

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        route = self._route()
        if route is not None:
            route.taps[self._name] = args[0]

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        route = self._route()
        if route is None:
            return None
        if args:
            return (self._spans(route, self._fold_in, args[0]), *args[1:]), kwargs
        key = "hidden_states" if "hidden_states" in kwargs else "input"
        return args, kwargs | {key: self._spans(route, self._fold_in, kwargs[key])}

    def _leave(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        route = self._route()
        if route is None:
            return None
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        kept = route.taps.pop(self._name, x)
        if isinstance(output, ModelOutput):  # a stack's
            given = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
            route.taps[CACHE] = output.get("past_key_values")  # was given, or the stack made it
            last = output["last_hidden_state"]
            output["last_hidden_state"] = self._spans(route, self._fold_out, given, given, last)
            return output
        if isinstance(output, tuple):  # attention modules and T5's blocks
            return (self._spans(route, self._fold_out, x, kept, output[0]), *output[1:])
        return self._spans(route, self._fold_out, x, kept, output)

    def _route(self) -> Route | None:
        """The Route of this forward, if it has rows for an insert here."""
        route = current()
        return route if route and any(name in self._seats for name, _, _ in route.spans) else None

    def _spans(self, route: Route, fold: Callable[..., torch.Tensor], *tensors: Any) -> torch.Tensor:
        if len(route.spans) == 1:
            return fold(route.spans[0][0], *tensors)
        count = len(tensors[-1])
        k = count // route.rows  # OPT flattens to B·T; beams and returned sequences repeat rows
        cut = [(name, slice(a * k, b * k)) for name, a, b in route.spans]
        return torch.cat([fold(name, *(pick(t, rows, count) for t in tensors)) for name, rows in cut])

    def _fold_in(self, name: str | None, x: torch.Tensor) -> torch.Tensor:
        for _, insert in self._at(name):
            x = insert.enter(x)
        return x

    def _fold_out(
        self, name: str | None, x: torch.Tensor, kept: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        for site, insert in self._at(name):
            y = insert(kept if site.entry else x, y)
        return y

    def _at(self, name: str | None) -> list[Seat]:
        return self._seats.get(name, []) if name is not None else []
