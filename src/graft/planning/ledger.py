"""Count what the operations of a block do: bytes that they hold, and work."""

import weakref
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graft.kernels import native
from graft.planning.costs import Cost, Work

# Bytes of a block. glibc returns larger ones at once; smaller ones leave holes that the next step does not
# fill.
HEAP = 32 << 20
aten: Any = torch.ops.aten
MATRICES = {aten.mm: 0, aten.addmm: 1, aten.bmm: 0, aten.baddbmm: 1}  # where the left factor stands
KINDS = {"product": "products", "attention": "attention", "decoded": "decoded"}


class Ledger(TorchDispatchMode):
    """Counts the bytes that operations inside the block allocate and have not freed.

    peak: the most at any time.  heap: the most in blocks of at most HEAP bytes.
    known: tensors that are not counted.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self.heap = 0
        self.operations = 0
        self._counted = {"products": 0.0, "attention": 0.0, "decoded": 0.0, "written": 0.0}
        self._live = 0  # bytes allocated now
        self._small = 0  # of these, bytes in blocks of at most HEAP
        self._seen = weakref.WeakKeyDictionary({t.untyped_storage(): None for t in known})

    def __enter__(self) -> Self:
        native.listening.append(self._told)
        entered: Self = super().__enter__()
        return entered

    def __exit__(self, *exception: Any) -> None:
        native.listening.remove(self._told)
        super().__exit__(*exception)

    @property
    def cost(self) -> Cost:
        """What was counted."""
        return Cost(self.peak, self.heap, Work(**self._counted, operations=self.operations))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operations += 1
        place = MATRICES.get(func._overloadpacket)
        if place is not None:
            self._told("product", output.numel() * args[place].shape[-1])
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return output

    def _told(self, kind: str, count: float) -> None:
        self._counted[KINDS[kind]] += count

    def _enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = None
            self._counted["written"] += storage.nbytes()
            self._count(storage.nbytes(), 1)
            weakref.finalize(storage, self._count, storage.nbytes(), -1).atexit = False

    def _count(self, size: int, sign: int) -> None:
        self._live += sign * size
        self._small += sign * size * (size <= HEAP)
        self.peak = max(self.peak, self._live)
        self.heap = max(self.heap, self._small)
