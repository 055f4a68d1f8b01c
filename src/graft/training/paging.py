"""Keep optimizer states on the parameters' device, or in pages next to it, under a budget of bytes.

The states of neighbouring parameters share one run of bytes, a slab. Slabs up to the budget stay on the
device; the others are brought in for their turn of the step and written back. The arithmetic sees the same
tensors either way, so paged and unpaged runs are equal bit for bit. (Dettmers et al. 2023, arXiv 2305.14314,
use managed memory; we copy.)

    CPU   a slab is a memory-mapped file without a name; after its turn the pages leave the process
    GPU   a slab is pinned host memory; while slab k is updated, a side stream copies k+1 in and k-1 out
"""

import functools
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from graft.storage.system import leave_memory, reserve

Layout = Mapping[str, tuple[torch.Size, torch.dtype]]  # the state tensors of one parameter
State = dict[str, torch.Tensor]

_ALIGNMENT = 64


@dataclass(frozen=True)
class Pages:
    """Where states are kept.

    budget: bytes that may stay on the device, None for all.  folder: for the mapped files.
    slab_bytes: of one slab.
    """

    budget: int | None = None
    folder: Path | None = None
    slab_bytes: int = 64 << 20


class Slab:
    """The states of a few parameters in one run of bytes; `bytes` holds them between the steps."""

    def __init__(self, layouts: Mapping[str, Layout], device: torch.device) -> None:
        self.places: dict[str, dict[str, tuple[int, torch.Size, torch.dtype]]] = {}
        self.size = 0
        for name, layout in layouts.items():
            self.places[name] = {}
            for key, (shape, dtype) in layout.items():
                self.places[name][key] = (self.size, shape, dtype)
                self.size += -(-shape.numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self.bytes = torch.zeros(self.size, dtype=torch.uint8, device=device)

    def states(self, buffer: torch.Tensor) -> Iterator[tuple[str, State]]:
        """Yield (parameter, its states) as views of `buffer`, which holds this slab's bytes."""
        for name, places in self.places.items():
            yield (
                name,
                {
                    key: buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
                    for key, (start, shape, dtype) in places.items()
                },
            )

    @functools.cached_property
    def held(self) -> list[tuple[str, State]]:
        """The states where they lie between the steps."""
        return list(self.states(self.bytes))


class MappedSlab(Slab):
    """A slab in a file without a name, which ends with the process. Raises OSError if the disk is full."""

    def __init__(self, layouts: Mapping[str, Layout], folder: Path | None) -> None:
        super().__init__(layouts, torch.device("meta"))
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserved now: if the disk filled up later, a hole in the file would raise SIGBUS within a step.
            reserve(file.fileno(), self.size)
            self._map = mmap.mmap(file.fileno(), self.size)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def visit(self) -> Iterator[list[tuple[str, State]]]:
        """Yield the states, to be read and changed in place; then let the pages leave the process."""
        yield self.held
        leave_memory(self._map)  # a shared mapping: the bytes stay in the file


class PinnedSlabs:
    """Slabs in pinned host memory, double-buffered through two staging buffers on a GPU."""

    def __init__(self, slabs: list[Slab], device: torch.device) -> None:
        self._slabs = slabs
        for slab in slabs:
            slab.bytes = torch.zeros(slab.size, dtype=torch.uint8, pin_memory=True)
        largest = max(slab.size for slab in slabs)
        self._staging = [torch.zeros(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._side = torch.cuda.Stream(device)
        self._side.wait_stream(torch.cuda.current_stream(device))

    def visit(self) -> Iterator[tuple[str, State]]:
        """Yield the states of all slabs. A copy into a buffer follows, on one stream, the copy out of it."""
        compute = torch.cuda.current_stream(self._side.device)
        arrived = self._fetch(0)
        for k, slab in enumerate(self._slabs):
            compute.wait_event(arrived)
            if k + 1 < len(self._slabs):
                arrived = self._fetch(k + 1)
            buffer = self._staging[k % 2][: slab.size]
            yield from slab.states(buffer)
            self._side.wait_event(compute.record_event())
            with torch.cuda.stream(self._side):
                slab.bytes.copy_(buffer, non_blocking=True)

    def _fetch(self, k: int) -> torch.cuda.Event:
        slab = self._slabs[k]
        with torch.cuda.stream(self._side):
            self._staging[k % 2][: slab.size].copy_(slab.bytes, non_blocking=True)
        return self._side.record_event()

    def settle(self) -> None:
        """Wait until the host's copies are current."""
        self._side.synchronize()


class States:
    """All optimizer states: {parameter: layout}, zero at first."""

    def __init__(self, layouts: Mapping[str, Layout], device: torch.device, pages: Pages) -> None:
        self._slabs: list[Slab] = []
        paged: list[Slab] = []
        resident = 0
        for part in _cut(layouts, pages.slab_bytes):
            size = Slab(part, torch.device("meta")).size
            if pages.budget is None or resident + size <= pages.budget:
                resident += size
                self._slabs.append(Slab(part, device))
            elif device.type == "cuda":
                paged.append(Slab(part, torch.device("meta")))
            else:
                self._slabs.append(MappedSlab(part, pages.folder))
        self._pinned = PinnedSlabs(paged, device) if paged else None
        self._mapped = [slab for slab in self._slabs if isinstance(slab, MappedSlab)]
        resident_slabs = [slab for slab in self._slabs if not isinstance(slab, MappedSlab)]
        self._resident = [pair for slab in resident_slabs for pair in slab.held]
        self._slabs += paged
        self.resident_bytes, self.paged_bytes = resident, sum(slab.size for slab in self._slabs) - resident

    def visit(self) -> Iterator[tuple[str, State]]:
        """Yield (parameter, {key: tensor on its device}), each once; changes in place are kept."""
        for turn in self.turns():
            yield from turn

    def turns(self) -> Iterator[list[tuple[str, State]]]:
        """Yield the same in parts that are on the device together.

        On a CPU each part is the same list at every step.
        """
        if self._resident:
            yield self._resident
        for slab in self._mapped:
            yield from slab.visit()
        if self._pinned:
            for pair in self._pinned.visit():
                yield [pair]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return {parameter.key: tensor}, each in its own memory, for saving."""
        return {f"{name}.{key}": tensor for name, state in self._all() for key, tensor in state.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the values that `tensors` returned."""
        for name, state in self._all():
            for key, tensor in state.items():
                tensor.copy_(tensors[f"{name}.{key}"])

    def _all(self) -> Iterator[tuple[str, State]]:
        if self._pinned:
            self._pinned.settle()
        for slab in self._slabs:
            yield from slab.states(slab.bytes)


def _cut(layouts: Mapping[str, Layout], slab_bytes: int) -> Iterator[dict[str, Layout]]:
    """Yield neighbouring parameters in parts of at most `slab_bytes`; a larger one is a part of its own."""
    part: dict[str, Layout] = {}
    size = 0
    for name, layout in layouts.items():
        needed = sum(shape.numel() * dtype.itemsize for shape, dtype in layout.values())
        if part and size + needed > slab_bytes:
            yield part
            part, size = {}, 0
        part[name], size = layout, size + needed
    if part:
        yield part
