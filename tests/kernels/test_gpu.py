"""What the GPU side does without a GPU, and bitsandbytes' operations, which its library also has for CPUs."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graft import kernels
from graft.kernels import bitsandbytes_cuda, gpu, reference
from graft.kernels.packed import Codebook, Packed
from graft.quant.fp4 import FP4
from graft.quant.nf4 import NF4

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight(rows=4, columns=64):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return Packed(*reference.quantise_4bit(drawn, NF4, 64), NF4, 64, columns)


@pytest.mark.quick
def test_importing_the_kernels_imports_neither_triton_nor_bitsandbytes():
    code = "import sys, graft.kernels; print(sorted({'triton', 'bitsandbytes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.quick
def test_the_gpu_has_kernels_exactly_where_triton_is_installed():
    for name in gpu.__all__:
        ours = getattr(gpu, name) if gpu.installed() else kernels.REFERENCE[name]
        assert kernels.find(name, "cuda") is ours
    with kernels.only_reference():
        assert kernels.find("linear", "cuda") is reference.linear


def test_a_triton_that_cannot_be_imported_leaves_the_work_to_the_reference():
    code = (
        "import sys, torch; sys.modules['triton'] = None; sys.path.append('tests/kernels')\n"
        "from graft.kernels import gpu, reference\n"
        "from test_gpu import weight\n"
        "w, x = weight(), torch.ones(3, 64)\n"
        "assert not gpu.working() and not gpu.fits(x)\n"
        "assert torch.equal(gpu.linear(x, w, None), reference.linear(x, w, None))\n"
        "assert torch.equal(gpu.dequantise(w, x.dtype), reference.dequantise(w, x.dtype))\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # tensors of the processor would be served
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.quick
def test_the_kernels_are_for_real_tensors_of_a_gpu():
    with FakeTensorMode():
        fake = torch.empty(3, 64, device="cuda")
    for tensor in (fake, torch.empty(3, 64), torch.empty(3, 64, device="meta")):
        assert not gpu.usable(tensor) and not gpu.fits(tensor)


@pytest.fixture
def for_cpus(monkeypatch):
    """bitsandbytes' operations for CPUs, with the form of its CUDA operation that writes into a tensor."""
    pytest.importorskip("bitsandbytes")
    theirs = torch.ops.bitsandbytes
    decode = SimpleNamespace(out=lambda *given, out: out.copy_(theirs.dequantize_4bit(*given)))
    ours = SimpleNamespace(dequantize_4bit=decode, gemm_4bit=theirs.gemm_4bit)
    monkeypatch.setattr(bitsandbytes_cuda, "_operations", lambda: ours)
    for cached in (bitsandbytes_cuda._decodes_alike, bitsandbytes_cuda._multiplies_alike):
        cached.cache_clear()
    yield
    for cached in (bitsandbytes_cuda._decodes_alike, bitsandbytes_cuda._multiplies_alike):
        cached.cache_clear()


@pytest.mark.parametrize("book", [NF4, FP4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bitsandbytes_takes_our_bytes(book, dtype, for_cpus):
    assert bitsandbytes_cuda._decodes_alike(CPU, dtype, book)
    for nested in (False, True):
        assert bitsandbytes_cuda._multiplies_alike(CPU, dtype, book, nested)


def test_an_operation_that_gives_other_numbers_is_not_used(for_cpus):
    """A codebook of the right name with other levels."""
    other = Codebook("nf4", tuple(1.1 * level for level in NF4.values))
    assert not bitsandbytes_cuda._decodes_alike(CPU, torch.float32, other)
    assert not bitsandbytes_cuda._multiplies_alike(CPU, torch.bfloat16, other, nested=False)


@pytest.mark.quick
def test_bitsandbytes_is_asked_for_whole_blocks_on_a_gpu_alone():
    assert not bitsandbytes_cuda._fits(weight(columns=70))  # its blocks would cross rows
    assert not bitsandbytes_cuda._fits(weight()._replace(block=16))
    assert not bitsandbytes_cuda._fits(weight()._replace(codebook=None))
    assert not bitsandbytes_cuda.dequantise(weight(), torch.empty(4, 64))
    assert bitsandbytes_cuda.product(torch.ones(1, 64), weight(), None) is None
