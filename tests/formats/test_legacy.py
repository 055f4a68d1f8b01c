"""Adapter folders whose tensors are a pickle: `graft convert` makes ones that load. Oracle: PEFT."""

import copy

import peft
import pytest
import torch
from peft_oracle import logits, tuned
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from graft.base.base import Base
from graft.cli import app
from graft.errors import AdapterError, UsageError
from graft.formats.legacy import pickled_in
from models import inputs, tiny_model

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"


@pytest.fixture
def legacy(tmp_path):
    """A folder of an adapter as PEFT wrote it in 2023, and PEFT's answers."""
    folder = tmp_path / "old"
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"])
    wanted = logits(tuned(tiny_model("llama"), settings, folder))
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    (folder / WEIGHTS).unlink()
    return folder, wanted


@pytest.mark.parametrize("given", ["folder", "file"])
def test_what_convert_writes_answers_as_peft(legacy, tmp_path, given):
    folder, wanted = legacy
    base = Base(copy.deepcopy(tiny_model("llama")))
    with pytest.raises(AdapterError) as error:
        base.load_adapter(folder, "x")
    assert f"graft convert {folder}" in error.value.remedy
    source = folder if given == "folder" else folder / PICKLE
    said = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "new")])
    assert said.exit_code == 0, said.output
    base.load_adapter(tmp_path / "new", "x")
    with base.using("x"):
        assert_close(base(**inputs("llama")).logits, wanted, atol=1e-5, rtol=1e-5)


def test_an_alpha_that_its_settings_do_not_have_is_refused(legacy, tmp_path):
    said = CliRunner().invoke(app, ["convert", str(legacy[0]), str(tmp_path / "new"), "--alpha", "16"])
    assert isinstance(said.exception, UsageError) and "lora_alpha=5" in said.exception.given
    assert not (tmp_path / "new").exists()


def test_only_a_folder_without_safetensors_needs_it(legacy, tmp_path):
    folder, _ = legacy
    assert pickled_in(folder) == folder / PICKLE and pickled_in(tmp_path) is None
    (folder / WEIGHTS).touch()
    assert pickled_in(folder) is None and pickled_in(folder / PICKLE) is None
