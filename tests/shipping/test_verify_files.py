"""`graft verify` of folders that are not measured: what is checked, what differs, what is not checked."""

import json
import shutil

import pytest
from flipped_bits import some_bytes
from safetensors.torch import save_file
from tiny_folder import write_model
from typer.testing import CliRunner

from graft import storage
from graft.cli import app
from graft.errors import UsageError
from graft.formats import peft
from graft.methods.lora import LoRA
from graft.runs.quantise import quantise
from graft.shipping.verify import verify
from models import randomise, tiny_base


def states(folder):
    return {check.what: check.state for check in verify(folder)}


@pytest.fixture
def adapter(tmp_path):
    """The folder of a saved adapter, without a manifest."""
    base = tiny_base()
    randomise(base.attach("pets", LoRA(r=2)))
    return base.adapters["pets"].save(tmp_path / "pets")


@pytest.fixture
def run(tmp_path, adapter):
    """A folder as a run leaves it: what is committed in it, and what has no digests."""
    folder = tmp_path / "run"
    for name in ("adapter", "checkpoints/step-000002", "rollouts/000001"):
        storage.commit(folder / name, lambda draft: shutil.copytree(adapter, draft, dirs_exist_ok=True))
    for name in ("recipe.yaml", "metrics.jsonl"):
        (folder / name).write_text("model: seedling\n")
    return folder


def test_an_adapter_is_compared_with_the_digests_in_its_file(adapter):
    assert states(adapter) == {"adapter": "same"}
    for _ in some_bytes(adapter / peft.WEIGHTS, 40):
        assert states(adapter) == {"adapter": "differs"}
    config = json.loads((adapter / peft.CONFIG).read_text())
    (adapter / peft.CONFIG).write_text(json.dumps(config | {"lora_alpha": 99}))
    (check,) = verify(adapter)
    assert check.state == "differs" and "adapter_config.json was changed" in check.finding


def test_an_adapter_of_another_program_is_said_to_be_not_checked(adapter):
    _, tensors, _ = peft.read(adapter)
    save_file(tensors, adapter / peft.WEIGHTS, metadata={"format": "pt"})
    (check,) = verify(adapter)
    assert (check.state, check.finding) == (
        "not checked",
        "no digests: an adapter of another program, or of an older Graft",
    )


def test_all_that_was_committed_in_a_runs_folder_is_checked_and_the_rest_is_named(run):
    assert states(run) == {
        "adapter": "same",
        "checkpoints/step-000002": "same",
        "rollouts/000001": "same",
        "other files": "not checked",
    }
    assert verify(run)[-1].finding == "no digests of metrics.jsonl, recipe.yaml"


@pytest.mark.parametrize("place", ["adapter", "checkpoints/step-000002", "rollouts/000001"])
@pytest.mark.parametrize("name", [peft.CONFIG, peft.WEIGHTS, storage.MANIFEST])
def test_a_flipped_bit_in_a_runs_folder_is_found_where_it_is(run, place, name):
    for _ in some_bytes(run / place / name, 8):
        found = states(run)
        assert found.pop(place) == "differs" and "differs" not in found.values()


def test_a_new_and_a_missing_file_are_told_apart(run):
    (run / "adapter" / "README.md").write_text("mine")
    (check,) = [check for check in verify(run) if check.what == "adapter"]
    assert (check.state, check.finding) == ("same", "2 as written, README.md is new")
    (run / "adapter" / peft.CONFIG).unlink()
    (check,) = [check for check in verify(run) if check.what == "adapter"]
    assert (check.state, check.finding) == ("differs", "adapter_config.json is missing, README.md is new")


def test_a_quantised_folder_is_checked_and_said_to_be_not_measured(tmp_path):
    model = write_model(tmp_path / "model")
    folder = quantise(str(model), tmp_path / "packed", "nf4")
    assert states(folder) == {"files": "same", "versions": "same", "measures": "not checked"}
    next(some_bytes(folder / "model.safetensors", 1))
    assert states(folder)["files"] == "differs"
    assert states(model) == {"files": "not checked"}


def test_a_folder_of_no_known_kind_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="holds no adapter, no run and no model"):
        verify(tmp_path)


def test_the_command_exits_with_1_only_if_something_differs(run, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(run), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["same"] is True
    next(some_bytes(run / "adapter" / peft.WEIGHTS, 1))
    done = runner.invoke(app, ["verify", str(run), "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 1 and facts["same"] is False
    assert [one["what"] for one in facts["checks"] if one["state"] == "differs"] == ["adapter"]
