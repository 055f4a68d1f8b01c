"""The adapters of a server: found under one root, loaded when they are asked for, put away for others.

What answers a request is a version: an adapter as its files were when it was loaded, attached under a name of
its own. A replaced or unloaded version is detached when the last request on it has ended.

Files are read, compared with their digests and checked by a thread of the registry's own, one adapter after
the other, while the model works; only attaching takes the model's time. Adapters that change the base's own
weights are the exception: beside them nothing is read. All methods but `infos` and `known` belong to the
thread that owns the model.
"""

import itertools
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.formats.peft import WEIGHTS
from graft.serve.folders import Found, chosen, found_in, look
from graft.sizes import size

AHEAD = 4  # adapters whose files were read, or are being read, and which are not attached yet: beyond budgets
Wake = Callable[[], None]


class NoRoom(Exception):
    """An adapter fits only when others, which answer requests now, are put away."""


class Loading(Exception):
    """The files of an adapter are being read."""


@dataclass(eq=False)
class Read:
    """An adapter that was read and checked, and is not attached yet."""

    found: Found
    adapter: Adapter
    bytes: int


@dataclass(eq=False)
class Ahead:
    """An adapter that is read ahead of its use.  digest: that it must have.  wakes: who is told."""

    digest: str
    reading: "Future[Read]"
    wakes: set[Wake] = field(default_factory=set)

    def tell(self, wake: Wake) -> None:
        """Tell somebody when it was read."""
        if wake not in self.wakes:
            self.wakes.add(wake)
            self.reading.add_done_callback(lambda _: wake())


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
        self._ahead: dict[str, Ahead] = {}
        self._reader = ThreadPoolExecutor(1, "graft-reader")
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        if root is not None:  # what reading asks of the model is known from now on
            base.identity()
            _ = base.sites
        self._pinned = {chosen(name, self._found).name for name in pinned}
        for name in sorted(self._pinned):
            self._current(name)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors of all adapters that are attached."""
        return sum(version.bytes for version in [*self._versions.values(), *self._retired])

    @property
    def users(self) -> int:
        """How many requests hold an adapter now."""
        return sum(version.users for version in [*self._versions.values(), *self._retired])

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

    def holds(self, name: str) -> bool:
        """Return whether an adapter is attached."""
        return name in self._versions

    def ready(self, name: str, wake: Wake) -> bool:
        """Return whether `acquire` has to wait for no files; if it has, somebody is told when they are read.

        Raises AdapterError as `acquire` does.
        """
        try:
            return self.holds(name) or bool(self._ready(self.known(name), wake))
        except Loading:
            return False

    def acquire(self, name: str, wake: Wake | None = None) -> Version:
        """Return the current version of an adapter, loaded if need be, for one request more.

        wake: what another thread calls when the files have been read. With it nobody waits for them here:
        Loading is raised until then.
        Raises NoRoom until other requests have ended; AdapterError for one that is unknown, was changed,
        is damaged, does not fit the base or exceeds the budget alone.
        """
        version = self._current(name, wake)
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
        return self.put(self.read(name).result(), pin=pin)

    def read(self, name: str) -> "Future[Read]":
        """Let the files of an adapter be read as they are now. Raises UsageError without a root."""
        if self._root is None:
            raise UsageError(
                f"the adapter {name!r} of a server without a folder of adapters",
                "a server that was started with --adapters",
                "start it with --adapters FOLDER",
            )
        return self._reading(name, None)

    def put(self, read: Read, *, pin: bool = False) -> Version:
        """Attach what was read, in the place of an older version. Raises NoRoom, AdapterError."""
        name = read.found.name
        version = self._attached(read)
        self._retire(name)
        with self._lock:
            self._found[name] = read.found
            self._versions[name] = version
            if pin:
                self._pinned.add(name)
        return version

    def unload(self, name: str) -> None:
        """Serve an adapter no longer. Requests in flight keep it. Raises AdapterError for an unknown one."""
        self.known(name)
        self._retire(name)
        self._ahead.pop(name, None)
        with self._lock:
            del self._found[name]
            self._known.pop(name, None)
            self._pinned.discard(name)

    def _current(self, name: str, wake: Wake | None = None) -> Version:
        found = self.known(name)
        version = self._versions.get(name)
        if version is None:
            version = self._attached(self._ready(found, wake))
            self._ahead.pop(name, None)
        with self._lock:
            self._versions.pop(name, None)
            self._versions[name] = version  # the most recently used
        return version

    def _ready(self, found: Found, wake: Wake | None) -> Read:
        """Return an adapter as it was read. Raises Loading where there is somebody to wake, AdapterError."""
        ahead = self._ahead.get(found.name)
        if ahead is None or ahead.digest != found.digest:
            ahead = self._begin(found, wake)
        if wake is not None and not ahead.reading.done():
            ahead.tell(wake)
            raise Loading(found.name)
        try:
            return ahead.reading.result()
        except BaseException:
            self._ahead.pop(found.name, None)
            raise

    def _begin(self, found: Found, wake: Wake | None) -> Ahead:
        """Let files be read ahead of their use. Of too many adapters one is forgotten that nobody took.

        Raises Loading where all of them are still being read.
        """
        self._ahead.pop(found.name, None)
        if len(self._ahead) >= AHEAD and wake is not None:
            untaken = next((name for name, one in self._ahead.items() if one.reading.done()), None)
            if untaken is None:
                next(iter(self._ahead.values())).tell(wake)
                raise Loading(found.name)
            del self._ahead[untaken]
        ahead = Ahead(found.digest, self._reading(found.name, found.digest))
        self._ahead[found.name] = ahead
        return ahead

    def _reading(self, name: str, digest: str | None) -> "Future[Read]":
        reading = self._reader.submit(self._read, name, digest)
        if any(adapter.in_place for adapter in self._base.adapters.values()):
            wait([reading])  # a step might put other weights into the base meanwhile
        return reading

    def _read(self, name: str, digest: str | None) -> Read:
        """Read and check an adapter, in the reader's thread.  digest: that it must have, if any."""
        assert self._root is not None, "what was found lies under a root"
        found = look(self._root, name)
        if digest is not None and (found is None or found.digest != digest):
            raise AdapterError(
                f"the adapter {name!r} was changed after the server had found it",
                "the same files",
                "load it again: POST /v1/load_lora_adapter",
            )
        if found is None:
            raise AdapterError(
                f"no adapter {name!r} lies in the folder of adapters", "a folder of that name", "put it there"
            )
        self._require_fitting(name, (found.folder / WEIGHTS).stat().st_size)
        adapter = self._base.read_adapter(found.folder, f"{name}@{next(self._numbers)}")
        after = look(self._root, name)
        if after is None or after.digest != found.digest:
            raise AdapterError(
                f"the adapter {name!r} was changed while it was read", "files that stay", "load it again"
            )
        return Read(found, adapter, _bytes(adapter))

    def _attached(self, read: Read) -> Version:
        """Attach an adapter. Others are put away for it first."""
        name, adapter = read.found.name, read.adapter
        self._make_room(name, read.bytes)
        if adapter.in_place:  # nothing reads the base's weights while steps exchange them
            self._reader.submit(lambda: None).result()
        self._base.seat(adapter)
        alone = _alone(self._base, adapter)
        with self._lock:
            self._known[name] = tuple(m.name() for m in adapter.methods), alone, read.bytes
        return Version(read.found, adapter.name, read.bytes, alone, adapter.head is not None)

    def _require_fitting(self, name: str, taken: int) -> None:
        """Raise AdapterError for an adapter that would exceed the budget beside those that stay."""
        fixed = sum(v.bytes for other, v in self._versions.copy().items() if other in self._pinned - {name})
        if self._budget is not None and fixed + taken > self._budget:
            raise AdapterError(
                f"the adapter {name!r} takes {size(taken)}, those that are pinned {size(fixed)}",
                f"at most {size(self._budget)} together, the budget of all adapters",
                "raise --adapter-memory, or pin fewer",
            )

    def _make_room(self, name: str, taken: int) -> None:
        """Put adapters away until `taken` bytes more are within the budget. Raises NoRoom, AdapterError."""
        if self._budget is None:
            return
        self._require_fitting(name, taken)
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
