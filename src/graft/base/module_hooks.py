"""Hooks at the modules where inserts are. They hand every span of rows to the inserts of its adapter.

The x of a sublayer enters another module than the one that y leaves, so a hook at the first one keeps x in
the Route until the last one runs. The x of a stack is a dict of the tensors among its keywords: masks and
positions, as its blocks will get them. Its cache of keys and values is left in the Route whole, because no
span may cut it.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from graft.base.host import Host
from graft.base.select import pick
from graft.core.insert import Insert, LowRankForm
from graft.core.route import Route, current
from graft.core.site import Site
from graft.kernels import low_rank


class ModuleHooks(Host):
    """All modules of one model that have inserts."""

    def __init__(self) -> None:
        self._joints: dict[str, Joint] = {}

    def add(self, name: str, site: Site, insert: Insert) -> None:
        self._joints.setdefault(site.name, Joint(site)).add(name, site, insert)

    def remove(self, name: str) -> None:
        for path, joint in list(self._joints.items()):
            joint.remove(name)
            if joint.empty:
                del self._joints[path]

    def rehook(self) -> None:
        for joint in self._joints.values():
            joint.rehook()


class Joint:
    """The hooks at the module of one path, whatever kinds of sites lie there."""

    def __init__(self, site: Site) -> None:
        self._root, self._name = site.root, site.name
        self._seats: dict[str, list[tuple[Site, Insert]]] = {}
        self._handles: list[Any] = []

    @property
    def empty(self) -> bool:
        """Whether no adapter has an insert here; there are no hooks then."""
        return not self._seats

    def add(self, name: str, site: Site, insert: Insert) -> None:
        """Seat an insert after those that the adapter has here already."""
        self._seats.setdefault(name, []).append((site, insert))
        self.rehook()

    def remove(self, name: str) -> None:
        """Unseat an adapter."""
        self._seats.pop(name, None)
        self.rehook()

    def rehook(self) -> None:
        """Hook the modules that sit here now, as the inserts need it."""
        while self._handles:
            self._handles.pop().remove()
        seats = [seat for of_adapter in self._seats.values() for seat in of_adapter]
        module = self._root.get_submodule(self._name)
        if seats:
            # An insert at a stack sees the virtual tokens too: it comes before the hook that cuts them off.
            # One at the table changes no virtual token: it comes before the hook that puts them in.
            first = any(site.kind in ("stack", "embed") for site, _ in seats)
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True, prepend=first))
        if any(insert.enters for _, insert in seats):
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
        for entry in {site.entry for site, _ in seats if site.entry}:
            entered = self._root.get_submodule(entry)
            self._handles.append(entered.register_forward_pre_hook(self._remember_input))
        if hasattr(module, "beside"):
            module.beside = self._beside if seats else None

    def _beside(self, x: torch.Tensor) -> LowRankForm | None:
        """Return the low-rank update of all rows, if that is all there is: the module adds it in its product.

        The hook after the module then leaves the result alone.
        """
        route = self._route()
        seats = self._seats[route.spans[0][0] or ""] if route and len(route.spans) == 1 else []
        if len(seats) != 1:
            return None
        site, insert = seats[0]
        form = None if site.entry or insert.enters or _drops(insert) else insert.low_rank()
        if route is None or form is None or not low_rank.ready(x, form[0], form[1]):
            return None
        route.taps.added.add(self._name)
        return form

    def _remember_input(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        route = self._route()
        if route is not None:
            route.taps.entered[self._name] = args[0]

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        route = self._route()
        if route is None:
            return None
        if args:
            return (self._by_span(route, self._through_enter, args[0]), *args[1:]), kwargs
        key = "hidden_states" if "hidden_states" in kwargs else "input"
        return args, kwargs | {key: self._by_span(route, self._through_enter, kwargs[key])}

    def _after(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        route = self._route()
        if route is None:
            return None
        if self._name in route.taps.added:
            route.taps.added.remove(self._name)
            return None
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        entered = route.taps.entered.pop(self._name, x)
        if isinstance(output, ModelOutput):  # a stack's
            given = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
            route.taps.cache = output.get("past_key_values")  # was given, or the stack made it
            last = output["last_hidden_state"]
            output["last_hidden_state"] = self._by_span(route, self._through_forward, given, given, last)
            return output
        if isinstance(output, tuple):  # attention modules and T5's blocks
            return (self._by_span(route, self._through_forward, x, entered, output[0]), *output[1:])
        return self._by_span(route, self._through_forward, x, entered, output)

    def _route(self) -> Route | None:
        """Return the Route of this forward if it has rows for an insert here."""
        route = current()
        return route if route and any(name in self._seats for name in route.names) else None

    def _by_span(self, route: Route, through: Callable[..., torch.Tensor], *tensors: Any) -> torch.Tensor:
        """Put tensors through the inserts of their rows. The last tensor has as many rows as the result."""
        if len(route.spans) == 1:
            return through(route.spans[0][0], *tensors)
        count = len(tensors[-1])
        return torch.cat(
            [through(name, *(pick(t, rows, count) for t in tensors)) for name, rows in route.parts(count)]
        )

    def _through_enter(self, name: str | None, x: torch.Tensor) -> torch.Tensor:
        for _, insert in self._seats.get(name or "", ()):
            x = insert.enter(x)
        return x

    def _through_forward(
        self, name: str | None, x: torch.Tensor, entered: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Put y through the inserts of one adapter.

        x: what entered this module.  entered: what entered the sublayer, for inserts at a sublayer.
        """
        for site, insert in self._seats.get(name or "", ()):
            y = insert(entered if site.entry else x, y)
        return y


def _drops(insert: Insert) -> bool:
    """Return whether dropout is on inside an insert."""
    return insert.training and any(isinstance(m, torch.nn.Dropout) and m.p for m in insert.modules())
