"""Products of few rows by the C kernels, against torch in fp64, at every level that runs here."""

import ctypes
import mmap

import pytest
import torch

from graft.kernels import native
from graft.quant import QuantLinear, Scheme

pytestmark = pytest.mark.skipif(not native.levels(), reason="no C compiler at the installation")

SCHEMES = [
    Scheme("nf4"), Scheme("nf4", double=False), Scheme("nf4", 32, False), Scheme("nf4", 48, False),
    Scheme("nf4", 256), Scheme("nf4", 4096, False), Scheme("fp4"), Scheme("fp4", 128, False),
    Scheme("int8"), Scheme("int4"), Scheme("int4", 64), Scheme("int4", 96), Scheme("int4", 34),
    Scheme("int8g"), Scheme("int3"), Scheme("int2"),
]  # fmt: skip
SHAPES = [(70, 192), (5, 100), (17, 65), (1, 31), (130, 64), (9, 777), (33, 2), (3, 1), (9, 84)]
ROWS = (1, 2, 3, 5, 8, 9, 16)


@pytest.fixture(params=native.levels())
def level(request):
    with native.at_level(request.param):
        yield request.param


def weights(scheme, rows, columns):
    """Return a packed layer whose constants differ from block to block."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator)
    return QuantLinear.pack(weight, scheme)


def inputs(rows, columns, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)


def close(got, x, weight):
    """Compare with the product in fp64; a sum of n rounded products is off by a few units in its terms."""
    wanted = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    assert ((got.double() - wanted).abs() <= 2e-6 * size + 1e-12).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.block}-{s.double}")
def test_rows_of_packed_weights_are_those_of_the_decoded_ones(level, scheme):
    for rows, columns in SHAPES:
        layer = weights(scheme, rows, columns)
        x = inputs(16, columns)
        for m in ROWS:
            close(layer(x[:m]), x[:m], layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_plain_weights(level, dtype):
    for rows, columns in SHAPES:
        weight = inputs(rows, columns, dtype)
        for m in ROWS:
            x, out = inputs(m, columns), torch.empty(m, rows)
            native.product([native.term(x, native.weight(weight))], out)
            close(out, x, weight)


@pytest.mark.parametrize("scheme", SCHEMES[:1] + SCHEMES[8:10], ids=lambda s: s.name)
def test_a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads(level, scheme):
    layer, x = weights(scheme, 200, 777), inputs(16, 777)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([layer(row[None]) for row in x])
        for threads in (1, 4):
            torch.set_num_threads(threads)
            for m in ROWS:
                assert torch.equal(layer(x[:m]), alone[:m])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_in_16_bits_are_summed_in_fp32(level, dtype):
    layer, x = weights(Scheme("nf4"), 70, 192), inputs(4, 192, dtype)
    out = torch.empty(4, 70, dtype=dtype)
    native.product([native.term(x, native.weight(layer.described()))], out)
    assert torch.equal(out, layer(x.float()).to(dtype))


def test_terms_add_up_with_scale_and_bias_and_a_misaligned_input(level):
    layer = weights(Scheme("nf4"), 70, 192)
    base = inputs(1, 3 * 192 + 1).flatten()
    x = base[1:].view(3, 192)  # begins 4 bytes into a vector
    A, B = inputs(7, 192), inputs(70, 7)
    low, bias, out = x @ A.T, inputs(1, 70)[0], torch.empty(3, 70)
    terms = [native.term(x, native.weight(layer.described())), native.term(low, native.weight(B), scale=0.5)]
    native.product(terms, out, bias)
    wanted = x.double() @ layer.weight.double().T + 0.5 * low.double() @ B.double().T + bias.double()
    assert torch.allclose(out.double(), wanted, atol=1e-4, rtol=1e-5)


def test_no_rows_and_no_columns_are_no_work(level):
    layer = weights(Scheme("nf4"), 70, 192)
    assert layer(torch.empty(0, 192)).shape == (0, 70)


def test_the_last_bytes_of_a_weight_are_not_overstepped(level):
    """Codes and constants end where a page ends: the next one may not be read."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    for scheme in (Scheme("nf4", double=False), Scheme("int8"), Scheme("int4")):
        layer = weights(scheme, 3, 100)
        held = mmap.mmap(-1, 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(held))
        if libc.mprotect(ctypes.c_void_p(start + page), page, 0):
            pytest.skip("no protected pages here")
        codes = layer.packed()["codes"]
        size = codes.numel() * codes.element_size()
        ctypes.memmove(start + page - size, codes.data_ptr(), size)
        wanted = layer(inputs(2, 100))
        described = native.weight(layer.described())
        described.codes = start + page - size
        out = torch.empty(2, 3)
        native.product([native.term(inputs(2, 100), described)], out)
        assert torch.equal(out, wanted)
        libc.mprotect(ctypes.c_void_p(start + page), page, mmap.PROT_READ | mmap.PROT_WRITE)
