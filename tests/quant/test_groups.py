"""Groups of whole numbers with scale and minimum: by hand, by a naive loop, by the error table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft import kernels
from graft.kernels import Grouped
from graft.kernels.groups import row_bytes
from graft.models.load import load
from graft.quant import QuantLinear, Scheme
from graft.quant.scheme import GROUPED
from models import tiny_model


def run(operation, *args):
    return kernels.find(operation, "cpu")(*args)


def quantised(w, bits, block):
    return Grouped(*run("quantise_groups", w, bits, block), bits, block, w.shape[1])


def test_golden_group():
    w = torch.tensor([[-2.0, -1.0, 0.5, 1.75, -2.0, 0.0, 3.0, 1.0]])
    codes, scale, minimum = run("quantise_groups", w, 4, 4)
    assert minimum.tolist() == [[-2.0, -2.0]]
    assert scale.tolist() == [[0.25, torch.tensor(5 / 15).half().item()]]
    assert run("unpack_bits", codes, 4).tolist() == [[0, 4, 10, 15, 0, 6, 15, 9]]
    assert bytes(codes.flatten().tolist()) == b"\x04\xaf\x06\xf9"
    back = run("dequantise_groups", Grouped(codes, scale, minimum, 4, 4, 8), torch.float32)
    assert back[0, :4].tolist() == [-2.0, -1.0, 0.5, 1.75]


def test_a_row_is_a_stream_of_bits_with_the_first_column_in_front():
    codes = torch.tensor([[5, 1, 7, 0, 2, 6, 3, 4, 1]], dtype=torch.uint8)
    stream = "".join(f"{code:03b}" for code in codes[0].tolist()).ljust(48, "0")
    packed = run("pack_bits", codes, 3)
    assert "".join(f"{byte:08b}" for byte in packed[0].tolist()) == stream


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [1, 7, 64, 75])
def test_unpack_undoes_pack(bits, columns):
    codes = torch.randint(0, 2**bits, (5, columns), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    packed = run("pack_bits", codes, bits)
    assert packed.shape == (5, row_bytes(columns, bits))
    assert torch.equal(run("unpack_bits", packed, bits)[:, :columns], codes.int())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [64, 75, 37, 1])
def test_values_are_those_of_a_naive_loop(bits, columns):
    w = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    back = run("dequantise_groups", quantised(w, bits, 32), torch.float32)
    for row in range(3):
        for start in range(0, columns, 32):
            group = w[row, start : start + 32]
            scale = ((group.max() - group.min()) / (2**bits - 1)).half().float()
            minimum = group.min().half().float()
            for column, value in enumerate(group, start):
                code = (
                    0 if scale == 0 else min(max(round(((value - minimum) / scale).item()), 0), 2**bits - 1)
                )
                torch.testing.assert_close(back[row, column], scale * code + minimum, rtol=1e-6, atol=1e-7)


SQNR = [(4, 32, 22.14), (4, 64, 20.95), (4, 128, 20.01), (3, 32, 15.5), (2, 32, 8.1)]  # methods.md 4.10


@pytest.mark.parametrize(("bits", "block", "decibels"), SQNR)
def test_error_on_normal_data_is_that_of_the_table(bits, block, decibels):
    x = torch.randn(512, 4096, generator=torch.Generator().manual_seed(1))
    noise = (
        (run("dequantise_groups", quantised(x, bits, block), torch.float32) - x)
        .square()
        .mean(dtype=torch.float64)
    )
    found = 10 * torch.log10(x.square().mean(dtype=torch.float64) / noise)
    assert abs(found.item() - decibels) < 0.06


def test_bits_per_weight():
    assert [Scheme("int4", block).bits for block in (32, 64, 128)] == [5.0, 4.5, 4.25]
    assert Scheme("int4").block == 32 and [Scheme(name).bits for name in ("int3", "int2", "int8g")] == [
        4.0,
        3.0,
        9.0,
    ]


rows = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([2, 3, 4, 8]), st.sampled_from([2, 32, 64]))
def test_no_value_is_further_off_than_half_a_step_and_the_rounding_of_the_constants(values, bits, block):
    w = torch.tensor([values], dtype=torch.float64).float()
    packed = quantised(w, bits, block)
    back = run("dequantise_groups", packed, torch.float64)
    for index, start in enumerate(range(0, len(values), block)):
        group, found = w[0, start : start + block].double(), back[0, start : start + block]
        step = (group.max() - group.min()) / (2**bits - 1)
        rounding = (
            2**-11 * (group.abs().max() + (2**bits - 1) * step) + 2**-24 * 2**bits
        )  # also of subnormal halves
        assert (found - group).abs().max() <= step / 2 + 2 * rounding, (index, found, group)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from(sorted(GROUPED)))
def test_zeros_stay_zeros(out_features, in_features, name):
    layer = QuantLinear.pack(torch.zeros(out_features, in_features), Scheme(name))
    assert (
        layer.weight.shape == (out_features, in_features) and not layer.weight.any() and not layer.codes.any()
    )


def test_chunking_changes_nothing(monkeypatch):
    w = torch.randn(37, 80, generator=torch.Generator().manual_seed(0))
    whole = quantised(w, 3, 32)
    values = run("dequantise_groups", whole, torch.float32)
    monkeypatch.setattr("graft.kernels.reference.CHUNK", 300)
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], quantised(w, 3, 32)[:3], strict=True))
    assert torch.equal(run("dequantise_groups", whole, torch.float32), values)


@pytest.mark.parametrize("group_size", [0, 64])
def test_a_folder_is_packed_in_groups_while_it_loads(group_size, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    base = load(tmp_path, quant="int4", dtype="fp32", group_size=group_size)
    layer = base.model.model.layers[0].mlp.down_proj
    assert layer.scheme.block == (group_size or 32) and layer.minimum.dtype == torch.float16
    w = model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(layer.weight, QuantLinear.pack(w.detach(), Scheme("int4", group_size)).weight)
