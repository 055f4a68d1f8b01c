"""Joint: the one hook at an occupied site. It hands every span of rows to the inserts of its adapter."""

from typing import Any

import torch

from graft.insert import Insert
from graft.route import Route, current
from graft.site import Site


class Joint:
    """Occupies one site; leaves no trace when its last insert is gone."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._inserts: dict[str, list[Insert]] = {}
        self._handle = site.module.register_forward_hook(self._run, with_kwargs=True)

    def add(self, name: str, insert: Insert) -> None:
        """Seat an insert behind those that the adapter has here already."""
        self._inserts.setdefault(name, []).append(insert)

    def remove(self, name: str) -> bool:
        """Unseat an adapter; True when nobody is left and the hook is gone."""
        self._inserts.pop(name, None)
        if not self._inserts:
            self._handle.remove()
        return not self._inserts

    def move(self) -> None:
        """Follow the site to the module that sits there now."""
        self._handle.remove()
        self._handle = self.site.module.register_forward_hook(self._run, with_kwargs=True)

    def _run(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        route = current()
        if route is None or not any(name in self._inserts for name, _, _ in route.spans):
            return None
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        if isinstance(output, tuple):  # attention modules and T5's blocks
            return (self._spans(route, x, output[0]), *output[1:])
        return self._spans(route, x, output)

    def _spans(self, route: Route, x: Any, y: torch.Tensor) -> torch.Tensor:
        if len(route.spans) == 1:
            return self._fold(route.spans[0][0], x, y)
        k = len(y) // route.rows  # OPT flattens to B·T; beams and returned sequences repeat rows
        parts = [self._fold(name, x[a * k : b * k], y[a * k : b * k]) for name, a, b in route.spans]
        return torch.cat(parts)

    def _fold(self, name: str | None, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for insert in self._inserts.get(name, ()) if name is not None else ():
            y = insert(x, y)
        return y
