"""Blocks of GGUF are llama.cpp's, byte for byte. Oracles: the `gguf` package's quantisers, bytes by hand."""

import pytest
import torch

from graft.formats.gguf import BLOCK, FORMS, decode, encode, pack, unpack

gguf = pytest.importorskip("gguf")
BLOCKS = [name for name, form in FORMS.items() if form.dtype is None]


def kind(name):
    return gguf.GGMLQuantizationType(FORMS[name].number)


def weights(rows=37, columns=96, seed=0):
    """Rows of very different sizes, with constant, one-sided and zero blocks among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-4, 3, rows)[:, None]
    weight[0], weight[1], weight[2], weight[3] = 0, 0.25, weight[2].abs(), -weight[3].abs()
    weight[4, :BLOCK] = torch.arange(BLOCK) - 16.0  # halves between two codes
    return weight


@pytest.mark.parametrize("name", FORMS)
def test_type_numbers_and_sizes_are_those_of_the_package(name):
    block, size = gguf.GGML_QUANT_SIZES[kind(name)]
    assert kind(name).name == name.upper()
    assert FORMS[name].row_bytes(block * 3) == size * 3


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("chunk", [None, 100])
def test_bytes_are_those_of_the_package(name, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr("graft.formats.gguf.CHUNK", chunk)
    weight = weights()
    expected = torch.from_numpy(gguf.quantize(weight.numpy(), kind(name))).view(torch.uint8)
    assert torch.equal(encode(weight, name), expected)


@pytest.mark.parametrize("name", FORMS)
def test_values_are_those_of_the_package(name):
    stored = encode(weights(seed=1), name)
    expected = torch.from_numpy(gguf.dequantize(stored.numpy(), kind(name)))
    assert torch.equal(decode(stored, name).float(), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_codes_go_in_and_come_out_as_they_are(name):
    form, generator = FORMS[name], torch.Generator().manual_seed(2)
    least = 0 if form.minimum else -(2 ** (form.bits - 1))
    codes = torch.randint(least, least + 2**form.bits, (5, 3, BLOCK), generator=generator)
    scale, minimum = (torch.randn(5, 3, generator=generator).half() for _ in range(2))
    back = unpack(pack(codes, scale, minimum if form.minimum else None, name), name)
    assert torch.equal(back[0], codes.to(torch.int8)) and torch.equal(back[1], scale)
    assert torch.equal(back[2], minimum) if form.minimum else back[2] is None


def test_a_block_of_four_bits_and_a_minimum_by_hand():
    codes = torch.arange(BLOCK).remainder(16)[None, None]
    stored = pack(codes, torch.tensor([[0.5]]), torch.tensor([[-1.0]]), "q4_1")
    # fp16: 0.5 is 0x3800, -1 is 0xbc00, low byte first; byte j holds codes j and j + 16, which are equal here
    assert stored[0].tolist() == [0x00, 0x38, 0x00, 0xBC, *(j * 17 for j in range(16))]
    assert decode(stored, "q4_1")[0, :4].tolist() == [-1, -0.5, 0, 0.5]


def test_floats_are_rounded_once_to_the_nearest():
    weight = torch.tensor([[1.0, 1 / 3, -2.5e-8, 65504.0]])
    assert torch.equal(decode(encode(weight, "f16"), "f16"), weight.half())
    assert torch.equal(decode(encode(weight, "bf16"), "bf16"), weight.bfloat16())
    assert torch.equal(decode(encode(weight, "f32"), "f32"), weight)
