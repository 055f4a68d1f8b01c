"""The adapters of a server: found under one root, loaded when they are asked for, put away for others.

What answers a request is a version: an adapter as its files were when it was loaded, attached under a name of
its own. A replaced or unloaded version is detached when the last request on it has ended. All methods but
`infos` belong to the thread that owns the model.
"""

import itertools
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.formats.peft import WEIGHTS
from graft.serve.folders import Found, chosen, found_in, look
from graft.sizes import size


class NoRoom(Exception):
    """An adapter fits only when others, which answer requests now, are put away."""


@dataclass(eq=False)
class Version:
    """An adapter that is attached.

    adapter: under which name of the base.  bytes: of its tensors.  users: requests that it answers now.
    alone: why its texts are not written in batches with those of others; "" if they are.
    """

    found: Found
    adapter: str
    bytes: int
    alone: str
    heads: bool
    users: int = 0
    retired: bool = False


@dataclass(frozen=True)
class Info:
    """What is told of an adapter.  methods: known once it was loaded; until then the type in its settings."""

    name: str
    methods: tuple[str, ...]
    created: int
    digest: str
    loaded: bool
    pinned: bool
    alone: str
    bytes: int


class Registry:
    """The adapters under a root.

    budget: bytes of loaded adapters, which are put away least recently used first; None: no limit.
    pinned: names of those that are loaded at once and stay.
    """

    def __init__(
        self, base: Base, root: Path | None, budget: int | None = None, pinned: Collection[str] = ()
    ) -> None:
        self._base, self._root, self._budget = base, root, budget
        self._found: dict[str, Found] = {} if root is None else found_in(root)
        self._versions: dict[str, Version] = {}  # of each name, the least recently used first
        self._retired: list[Version] = []
        self._known: dict[str, tuple[tuple[str, ...], str, int]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._pinned = {chosen(name, self._found).name for name in pinned}
        for name in sorted(self._pinned):
            self._current(name)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors of all adapters that are attached."""
        return sum(version.bytes for version in [*self._versions.values(), *self._retired])

    def infos(self) -> list[Info]:
        """Return what is told of every adapter, by name; any thread may ask."""
        with self._lock:
            found, versions = dict(self._found), dict(self._versions)
            known = dict(self._known)
        infos = []
        for name, one in sorted(found.items()):
            methods, alone, count = known.get(name, ((one.kind,), "", 0))
            loaded = name in versions
            infos.append(
                Info(name, methods, one.created, one.digest, loaded, name in self._pinned, alone, count)
            )
        return infos

    def known(self, name: str) -> Found:
        """Return what was found under a name; any thread may ask. Raises AdapterError with the nearest."""
        with self._lock:
            return chosen(name, self._found)

    def acquire(self, name: str) -> Version:
        """Return the current version of an adapter, loaded if need be, for one request more.

        Raises NoRoom until other requests have ended; AdapterError for one that is unknown, was changed,
        is damaged, does not fit the base or exceeds the budget alone.
        """
        version = self._current(name)
        version.users += 1
        return version

    def release(self, version: Version) -> None:
        """Tell that a request on a version has ended."""
        version.users -= 1
        if version.retired and not version.users:
            self._retired.remove(version)
            self._base.detach(version.adapter)

    def load(self, name: str, *, pin: bool = False) -> Version:
        """Load an adapter, as its files are now, in the place of an older version.

        Requests in flight keep theirs. Raises as `acquire` does, and leaves the older version where it fails.
        """
        if self._root is None:
            raise UsageError(
                f"the adapter {name!r} of a server without a folder of adapters",
                "a server that was started with --adapters",
                "start it with --adapters FOLDER",
            )
        found = look(self._root, name)
        if found is None:
            raise AdapterError(
                f"no adapter {name!r} lies in the folder of adapters", "a folder of that name", "put it there"
            )
        version = self._attached(found)
        self._retire(name)
        with self._lock:
            self._found[name] = found
            self._versions[name] = version
            if pin:
                self._pinned.add(name)
        return version

    def unload(self, name: str) -> None:
        """Serve an adapter no longer. Requests in flight keep it. Raises AdapterError for an unknown one."""
        self.known(name)
        self._retire(name)
        with self._lock:
            del self._found[name]
            self._known.pop(name, None)
            self._pinned.discard(name)

    def _current(self, name: str) -> Version:
        found = self.known(name)
        version = self._versions.get(name)
        if version is None:
            self._require_as_found(found)
            version = self._attached(found)
        with self._lock:
            self._versions.pop(name, None)
            self._versions[name] = version  # the most recently used
        return version

    def _require_as_found(self, found: Found) -> None:
        assert self._root is not None, "what was found lies under a root"
        now = look(self._root, found.name)
        if now is None or now.digest != found.digest:
            raise AdapterError(
                f"the adapter {found.name!r} was changed after the server had found it",
                "the same files",
                "load it again: POST /v1/load_lora_adapter",
            )

    def _attached(self, found: Found) -> Version:
        """Load and attach an adapter. Others are put away for it first."""
        known = self._known.get(found.name)
        self._make_room(found.name, known[2] if known else (found.folder / WEIGHTS).stat().st_size)
        label = f"{found.name}@{next(self._numbers)}"
        adapter = self._base.load_adapter(found.folder, label)
        taken, alone = _bytes(adapter), _alone(self._base, adapter)
        with self._lock:
            self._known[found.name] = tuple(m.name() for m in adapter.methods), alone, taken
        return Version(found, label, taken, alone, adapter.head is not None)

    def _make_room(self, name: str, taken: int) -> None:
        """Put adapters away until `taken` bytes more are within the budget. Raises NoRoom, AdapterError."""
        if self._budget is None:
            return
        if taken > self._budget:
            raise AdapterError(
                f"the adapter {name!r} takes {size(taken)}",
                f"at most {size(self._budget)}, the budget of all adapters",
                "raise --adapter-memory",
            )
        idle = [other for other, v in self._versions.items() if not v.users and other not in self._pinned]
        while self.bytes + taken > self._budget:
            if not idle:
                raise NoRoom(name)
            self._retire(idle.pop(0))

    def _retire(self, name: str) -> None:
        """Take a version out of use; it is detached when no request is on it any more."""
        with self._lock:
            version = self._versions.pop(name, None)
        if version is None:
            return
        version.retired = True
        if version.users:
            self._retired.append(version)
        else:
            self._base.detach(version.adapter)


def _bytes(adapter: Adapter) -> int:
    tensors: dict[int, Any] = {}
    for _, insert in adapter.inserts:
        for tensor in [*insert.parameters(), *insert.buffers()]:
            tensors[tensor.data_ptr()] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _alone(base: Base, adapter: Adapter) -> str:
    """Return why the texts of an adapter are written in batches of their own; "" if they are not."""
    if adapter.head is not None:
        return ""
    for method in adapter.methods:
        if not method.routable:
            return str(method.routable)
    if not base.in_native(adapter.name) and not base.in_slots(adapter.name):
        return "its texts cannot be written in slots of a shared cache"
    return ""
