"""Tests of Triton's kernels under its interpreter, on tensors of the processor.

The interpreter must be chosen before Triton is imported, so a process of its own runs the tests of a file: a
test there starts it by `passes`. A file that imports this one is skipped without Triton.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graft import kernels
from graft.kernels import gpu, native

HERE = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEAR = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2e-3}  # of the largest value

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
interpreted = pytest.mark.skipif(not HERE, reason="runs in the interpreter's process")
starts_it = pytest.mark.skipif(HERE, reason="is the interpreter's process")


def passes(file):
    """Run a file's tests under the interpreter."""
    words = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=600,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def by_torch(monkeypatch):
    """Use no kernels of any kind."""
    with native.at_level("reference"), kernels.only_reference(), monkeypatch.context() as patch:
        patch.setattr(gpu, "usable", lambda *tensors: False)
        yield


def close(ours, exact, dtype):
    error = (ours.double() - exact).abs().max()
    assert error <= NEAR[dtype] * exact.abs().max().clamp(min=1), float(error)
