"""Tensors of mapped files, whose pages are given back to the system when their weights have been packed.

What is read of a mapped file counts as memory of the process. When a large model is packed while it streams
in, its file would count beside the packed weights, though the system could read it again. On systems other
than Linux nothing is given back.
"""

import ctypes
import functools
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

MAPS = Path("/proc/self/maps")


class MappedSlice:
    """A tensor in a safetensors file that is read when it is indexed: safetensors' slice with this added.

    What is read has an attribute `forget`, to be called when nobody uses the memory any more.
    name: the resolved path of its file.  places: of every file, where it is mapped.
    """

    def __init__(self, inner: Any, name: str, places: dict[str, list[range]]) -> None:
        self._inner, self._name, self._places = inner, name, places

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Any = self._inner[index]
        if tensor.is_contiguous() and self._holds(tensor):
            # The slice keeps the mapping alive until then.
            tensor.forget = functools.partial(_give_back, self._inner, tensor.data_ptr(), tensor.nbytes)
        read: Tensor = tensor
        return read

    def __getattr__(self, name: str) -> Any:  # get_shape, get_dtype
        return getattr(self._inner, name)

    def _holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in the mapped file, and not in memory of its own."""
        if self._name not in self._places:
            self._places[self._name] = _mappings_of(self._name)
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes - 1
        return any(first in place and last in place for place in self._places[self._name])


def mapped(slices: Mapping[str, Any], path: Path) -> dict[str, MappedSlice]:
    """Return safetensors' slices of one open file as slices whose pages can be given back."""
    places: dict[str, list[range]] = {}
    return {key: MappedSlice(inner, str(path.resolve()), places) for key, inner in slices.items()}


def _mappings_of(name: str) -> list[range]:
    """Return the addresses at which this process has mapped a file."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
    ours = [line.split(maxsplit=5) for line in lines]
    spans = [words[0].split("-") for words in ours if words[5:] == [name]]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


def _give_back(inner: Any, address: int, size: int) -> None:
    """Tell the system that the whole pages of these bytes are not needed; they can be read again."""
    page = mmap.PAGESIZE
    start, end = -(-address // page) * page, (address + size) // page * page
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
