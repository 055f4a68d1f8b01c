"""Tensors of mapped files: right values, and no memory after their weights have been packed."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.support.models import tiny_model

import graft
from graft.models import mapped as module
from graft.models.mapped import MAPS, mapped

SIZE = 4 << 20  # numbers

linux = pytest.mark.skipif(not MAPS.exists(), reason="memory of mapped files is told by Linux alone")


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "a name with spaces.safetensors"
    wanted = {name: torch.arange(SIZE, dtype=torch.float32) + place for place, name in enumerate("abc")}
    wanted |= {"small": torch.ones(3), "none": torch.empty(0, 4)}
    save_file(wanted, path)
    file = safe_open(path, framework="pt")
    return mapped({key: file.get_slice(key) for key in wanted}, path), wanted


def of_files():
    """The bytes of mapped files that count as memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_values_shapes_and_types_are_those_of_the_file(state):
    slices, wanted = state
    for name, tensor in wanted.items():
        assert torch.equal(slices[name][...], tensor)
        assert slices[name].get_shape() == list(tensor.shape) and slices[name].get_dtype() == "F32"
    assert torch.equal(slices["a"][5:7], wanted["a"][5:7])


@linux
def test_a_forgotten_tensor_takes_no_memory_and_can_be_read_again(state):
    slices, wanted = state
    before = of_files()
    for name in "abc":
        tensor = slices[name][...]
        float(tensor.sum())
        tensor.forget()
        assert of_files() - before < SIZE  # a quarter of one tensor
        assert torch.equal(tensor, wanted[name])
        tensor.forget()


def test_a_tensor_with_memory_of_its_own_is_never_forgotten(state):
    slices, _ = state
    assert not hasattr(slices["a"][:, None][::2].contiguous(), "forget")
    slice_of_nothing_mapped = module.MappedSlice(torch.ones(5000), "/nowhere", {})
    assert not hasattr(slice_of_nothing_mapped[...], "forget")


def test_nothing_is_given_back_where_maps_cannot_be_read(state, monkeypatch):
    monkeypatch.setattr("graft.models.mapped.MAPS", Path("/nowhere"))
    slices, wanted = state
    assert torch.equal(slices["b"][...], wanted["b"]) and not hasattr(slices["b"][...], "forget")


@linux
def test_loading_forgets_what_it_packs_and_nothing_else(tmp_path, monkeypatch):
    model = tiny_model("llama").bfloat16()
    model.save_pretrained(tmp_path)
    forgotten, give_back = [], module._give_back
    monkeypatch.setattr(
        module,
        "_give_back",
        lambda inner, *where: forgotten.append(inner.get_shape()) or give_back(inner, *where),
    )
    base = graft.load(tmp_path, quant="nf4")
    packed = [tuple(m.weight.shape) for m in base.model.modules() if type(m).__name__ == "QuantLinear"]
    assert sorted(map(tuple, forgotten)) == sorted(packed)
    for name, tensor in model.state_dict().items():
        if not name.endswith("proj.weight"):
            assert torch.equal(base.model.state_dict()[name].bfloat16(), tensor)
