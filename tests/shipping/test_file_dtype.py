"""A base that computes in fp32, because that is faster, is exported as its files are: rounded once."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import graft
from graft.base.merging import folded
from graft.errors import MergeError
from graft.models import dtype as chooser
from graft.models.load import load
from graft.runs.quantise import quantise
from graft.shipping.export import export
from graft.shipping.merge_ways import choices
from graft.shipping.verify import DIFFERS, verify
from models import randomise


@pytest.fixture(autouse=True)
def fp32_is_faster(monkeypatch):
    monkeypatch.setattr(chooser, "choose", lambda device_type: chooser.Choice("fp32", "it is faster here"))


@pytest.fixture
def base():
    found = load("seedling")  # its files are in bf16
    assert found.dtype == torch.float32
    return found


def tensors(folder):
    return load_file(folder / "model.safetensors")


def fact(folder, file, key):
    return json.loads((folder / file).read_text())[key]


def with_lora(base, size=0.02):
    randomise(base.attach("sql", graft.LoRA(r=4)), scale=size)
    return base


def test_a_bare_base_is_written_bit_for_bit_as_it_was(base, tmp_path):
    from graft import seedling

    written, before = tensors(export(base, tmp_path / "out")), tensors(seedling.FOLDER)
    assert written.keys() == before.keys()
    assert all(torch.equal(written[key], before[key]) for key in before)
    assert fact(tmp_path / "out", "config.json", "dtype") == "bfloat16"


def test_a_merge_is_rounded_once_to_the_dtype_of_the_files(base, tmp_path):
    with_lora(base)
    folder = export(base, tmp_path / "out")
    written = tensors(folder)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    for site, insert in base.adapters["sql"].inserts:
        assert torch.equal(written[f"{site.path}.weight"], folded(site, [insert])[0].bfloat16())
    assert fact(folder, "merge_report.json", "dtype") == "bfloat16"
    assert base.dtype == torch.float32 and not base.merged  # as before


def test_the_certificate_measures_the_rounded_file_and_can_be_repeated(base, tmp_path):
    with_lora(base).adapters["sql"].save(tmp_path / "adapter")
    folder = export(base, tmp_path / "out")
    weights = fact(folder, "certificate.json", "weights")
    assert 0 < weights["max"] < 2**-8  # half a step of bf16 at 1
    assert fact(folder, "certificate.json", "base")["dtype"] == "fp32"
    assert not [check for check in verify(folder) if check.state == DIFFERS]


def test_transformers_reads_what_graft_reads(base, tmp_path):
    folder = export(with_lora(base), tmp_path / "out")
    ids = torch.arange(3, 15).view(1, -1)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert_close(load(folder)(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_bf16_cannot_hold_is_refused_although_the_base_could(base, tmp_path):
    with_lora(base, 1e-4)  # its product is far below the steps of bf16
    with pytest.raises(MergeError, match=r"survives the rounding to bfloat16.*dtype='fp32'"):
        export(base, tmp_path / "out")


def test_trained_tensors_of_the_base_are_written_in_that_dtype_too(base, tmp_path):
    randomise(base.attach("all", graft.Full()), scale=0.02)
    written = tensors(export(base, tmp_path / "out"))
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    for site, insert in base.adapters["all"].inserts:
        for name, p in insert.swap().items():
            key = f"{site.path}.{name}"
            assert key not in written or torch.equal(written[key], p.detach().bfloat16())


@pytest.mark.parametrize("quant", ["nf4", "int4"])
def test_packed_layers_become_16_bit_and_ways_to_merge_say_so(quant, tmp_path):
    base = with_lora(load("seedling", quant))
    ways = {way["into"]: way.get("bits") for way in choices(base, ["sql"])}
    assert ways["dequantised"] == ways["original"] == 16
    for into in ("dequantised", "original"):
        written = tensors(export(base, tmp_path / into, into=into, lossy=True))
        assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("to", "how"), [("gguf", {"type": "bf16"}), ("gguf", {}), ("gptq", {})])
def test_other_layouts_have_the_bytes_of_a_base_in_16_bits(to, how, tmp_path):
    found = []
    for dtype in ("auto", "bf16"):
        folder = export(load("seedling", dtype=dtype), tmp_path / dtype / "same", to=to, lossy=True, **how)
        found.append(next(folder.glob("*.gguf"), folder / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_an_export_in_fp32_is_had_by_asking_for_it(tmp_path):
    written = tensors(export(load("seedling", dtype="fp32"), tmp_path / "out"))
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


@pytest.mark.parametrize("quant", ["nf4", "int4"])
def test_a_quantised_folder_is_as_small_as_from_16_bits(quant, tmp_path, monkeypatch):
    quantise("seedling", tmp_path / "wide", quant)
    monkeypatch.setattr(chooser, "choose", lambda device_type: chooser.Choice("bf16", "it is faster here"))
    quantise("seedling", tmp_path / "narrow", quant)
    wide, narrow = tensors(tmp_path / "wide"), tensors(tmp_path / "narrow")
    assert wide.keys() == narrow.keys()
    assert all(torch.equal(wide[key], narrow[key]) for key in wide)
    assert fact(tmp_path / "wide", "config.json", "dtype") == "bfloat16"
