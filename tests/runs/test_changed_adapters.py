"""Adapters in a run's folder: whoever opens them finds a changed byte, and a run writes its own again."""

import shutil

import pytest
from flipped_bits import some_bytes
from tiny_folder import write_model, write_rows

from graft.errors import AdapterError, CheckpointError, GraftError, Notice
from graft.runs.open import open_model
from graft.runs.run import run
from graft.shipping.export import export

FILES = ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "manifest.json"]


def recipe(home, output, **changes):
    return {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 64},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "lr": 1e-2, "save_every": 1},
        "output": str(output),
        **changes,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, rows, and the folder of a finished run."""
    home = tmp_path_factory.mktemp("changed")
    write_model(home / "model")
    write_rows(home / "rows.jsonl")
    run(recipe(home, home / "done"))
    return home


@pytest.fixture
def done(home, tmp_path):
    """A copy of the finished run, which may be damaged."""
    return shutil.copytree(home / "done", tmp_path / "done")


@pytest.mark.parametrize("name", FILES)
def test_every_door_names_a_flipped_bit_of_a_runs_adapter(home, done, name, tmp_path):
    next(some_bytes(done / "adapter" / name, 1))
    doors = [
        lambda: open_model(str(done)),  # eval, chat, export of a run
        lambda: open_model(str(done / "adapter")),  # of its adapter
        lambda: open_model(str(home / "model"), [str(done)]),  # --adapter
        lambda: run(recipe(home, tmp_path / "more", method=None, adapter=str(done / "adapter"))),
    ]
    for door in doors:
        with pytest.raises(GraftError):
            door()


def test_an_exported_adapter_is_compared_with_its_certificate(home, tmp_path):
    opened = open_model(str(home / "done"))
    folder = export(opened.base, tmp_path / "out", to="peft")
    open_model(str(home / "model"), [str(folder)])
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "certificate.json"):
        for _ in some_bytes(folder / name, 3):
            with pytest.raises(AdapterError):
                open_model(str(home / "model"), [str(folder)])


def test_a_finished_run_writes_a_changed_adapter_again_from_its_last_checkpoint(home, done):
    path = done / "adapter" / "adapter_model.safetensors"
    sound = path.read_bytes()
    next(some_bytes(path, 1))
    with pytest.warns(Notice, match=r"nothing is left to train"):
        run(recipe(home, done))
    assert path.read_bytes() == sound
    open_model(str(done))


def test_a_finished_run_without_checkpoints_names_its_changed_adapter(home, done):
    shutil.rmtree(done / "checkpoints")
    next(some_bytes(done / "adapter" / "adapter_model.safetensors", 1))
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors was changed after Graft wrote it"):
        run(recipe(home, done))
