"""The torch kernels against the definitions: binary search, numbers worked out by hand, naive loops."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graft import kernels
from graft.kernels import Packed
from graft.kernels.packed import Codebook
from graft.quant import double
from graft.quant.dynamic import SIGNED, UNSIGNED
from graft.quant.fp4 import FP4
from graft.quant.nf4 import NF4


def run(operation, *args):
    return kernels.find(operation, "cpu")(*args)


def test_golden_nf4_block():
    x = torch.linspace(-2, 1.5, 8).view(1, 8)
    codes, absmax = run("quantise_4bit", x, NF4, 64)
    assert absmax.tolist() == [[2.0]]
    assert run("unpack", codes).tolist() == [[0, 1, 2, 4, 7, 10, 12, 14]]
    assert bytes(codes.flatten().tolist()) == b"\x01\x24\x7a\xce"
    back = run("dequantise", Packed(codes, absmax, NF4, 64, 8), torch.float32)
    golden = [-2, -1.3923856, -1.0501461, -0.5688828, 0, 0.4922246, 0.8814197, 1.4459137]
    torch.testing.assert_close(back, torch.tensor([golden]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("book", [NF4, FP4, SIGNED, UNSIGNED], ids=lambda book: book.name)
def test_nearest_level_is_that_of_a_binary_search(book):
    ascending, order = torch.tensor(book.values).sort(stable=True)
    midpoints = (ascending[1:] + ascending[:-1]) / 2
    inf = torch.tensor(torch.inf)
    hard = torch.cat(
        [
            midpoints,
            midpoints.nextafter(inf),
            midpoints.nextafter(-inf),
            ascending,
            torch.tensor([-0.0, 1e-45]),
        ]
    )
    easy = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = torch.cat([hard, easy, easy * 1e-3, easy * 1e-6]).clamp(-1, 1)
    expected = order[torch.bucketize(values, midpoints)].to(torch.uint8)
    assert torch.equal(run("find_nearest", values, book), expected)


def test_unpack_undoes_pack():
    nibbles = torch.randint(0, 16, (5, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run("unpack", run("pack", nibbles)), nibbles)


@pytest.mark.parametrize("columns", [64, 96, 37, 1, 2])
def test_dequantised_value_is_level_times_absmax_of_its_row_block(columns):
    w = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    codes, absmax = run("quantise_4bit", w, NF4, 32)
    back = run("dequantise", Packed(codes, absmax, NF4, 32, columns), torch.float32)
    for row in range(3):
        for column in range(columns):
            byte = int(codes[row, column // 2])
            code = byte >> 4 if column % 2 == 0 else byte & 15
            largest = w[row, column // 32 * 32 : (column // 32 + 1) * 32].abs().max()
            assert absmax[row, column // 32] == largest
            torch.testing.assert_close(
                back[row, column], torch.tensor(NF4.values[code]) * largest, rtol=1e-7, atol=0
            )


def test_chunking_changes_nothing(monkeypatch):
    w = torch.randn(37, 80, generator=torch.Generator().manual_seed(0))
    whole = run("quantise_4bit", w, NF4, 32)
    monkeypatch.setattr("graft.kernels.reference.CHUNK", 300)
    chunked = run("quantise_4bit", w, NF4, 32)
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))


@pytest.mark.parametrize("mode", [FakeTensorMode, torch.inference_mode])
def test_tables_are_real_whatever_mode_asks_for_them_first(mode):
    book, cpu = Codebook("mine", NF4.values), torch.device("cpu")
    double._table.cache_clear()
    with mode():
        for table in (book.levels, book.pairs, book.search, double._table):
            table(cpu)
    found = [book.levels(cpu), book.pairs(cpu), *book.search(cpu)[:2], double._table(cpu)]
    assert all(type(table) is torch.Tensor and not table.is_inference() for table in found)
    for ours, theirs in zip(found, [NF4.levels(cpu), NF4.pairs(cpu), *NF4.search(cpu)[:2]], strict=False):
        assert torch.equal(ours, theirs)


def test_a_registered_kernel_is_chosen_and_the_reference_can_be_forced():
    mine = lambda x, book: x
    kernels.register("find_nearest", "meta", mine)
    try:
        assert kernels.find("find_nearest", "meta") is mine
        assert kernels.find("find_nearest", "cpu") is not mine
        with kernels.only_reference():
            assert kernels.find("find_nearest", "meta") is not mine
    finally:
        del kernels._kernels["find_nearest"]["meta"]
    with pytest.raises(ValueError, match="no operation"):
        kernels.register("nearest", "cpu", mine)
