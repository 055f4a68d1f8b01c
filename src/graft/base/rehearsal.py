"""Rehearsal: what an adapter would be on a base, in shapes alone.

A file of settings may ask for more memory than there is. So its methods are built without numbers first, and
what they come to is compared with the tensors of the file.
"""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Let tensors that the block makes have a shape and no memory; notices are kept for when it is real."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
