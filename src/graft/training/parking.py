"""Park the tensors that in-place methods replace, so that full fine-tuning holds one copy in memory.

An in-place method trains a copy of a base's tensors and keeps the originals, which answer without the
adapter. During training nobody reads them. On the CPU they then lie in a mapped file without a name: they can
be read at any time, and their pages leave the process when memory is short.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from graft import storage
from graft.core.insert import InPlace
from graft.training.paging import MappedSlab
from graft.training.together import Trained


@contextlib.contextmanager
def parked(adapter: Trained, folder: Path) -> Iterator[None]:
    """Inside the block keep the originals of an in-place adapter in a file, if the disk has room."""
    replaced = originals(adapter)
    size = sum(p.numel() * p.element_size() for p in replaced.values())
    if not replaced or size > storage.free_bytes(folder) // 2:
        yield
        return
    slab = MappedSlab({name: {"value": (p.shape, p.dtype)} for name, p in replaced.items()}, folder)
    for states in slab.visit():
        for name, state in states:
            state["value"].copy_(replaced[name].detach())
    try:
        for name, state in slab.states(slab.bytes):
            replaced[name].data = state["value"]
        yield
    finally:
        for original in replaced.values():
            original.data = original.data.clone()


def originals(adapter: Trained) -> dict[str, nn.Parameter]:
    """Return the parameters on the CPU that a trained copy replaces, each once."""
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for site, insert in adapter.inserts:
        if isinstance(insert, InPlace):
            for name in insert.swap():
                parameter = site.module._parameters[name]
                if parameter.device == torch.device("cpu"):
                    named.setdefault(id(parameter), (f"{site.name}.{name}", parameter))
    return dict(named.values())
