import json
import os
import warnings

import pytest

from graft.errors import AdapterError, Notice, UsageError
from graft.methods.lora import LoRA
from graft.serve.folders import found_in, look
from graft.serve.registry import Registry
from models import tiny_base

HOSTILE = [
    "", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:x", "a\0b", "\u202ea", "．．", "a" * 65, "-a",
    ".hidden", "a b", "%2e%2e", "~root", "a\nb", "aux:", "|id",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    base = tiny_base()
    base.attach("sql", LoRA(r=2)).save(tmp_path / "root" / "sql")
    base.attach("run", LoRA(r=2)).save(tmp_path / "root" / "run" / "adapter")
    (tmp_path / "root" / "notes").mkdir()
    return tmp_path / "root"


def test_adapters_and_runs_are_found_by_the_names_of_their_folders(root):
    found = found_in(root)
    assert list(found) == ["run", "sql"] and found["run"].folder == root / "run" / "adapter"
    assert found["sql"].kind == "lora" and len(found["sql"].digest) == 128


def test_a_chain_is_served_by_its_last_finished_stage(root):
    for stage in ("sft", "dpo"):
        os.makedirs(root / "life" / stage)
        (root / "life" / stage / "finished.json").write_text("{}")
        (root / "run" / "adapter").rename(root / "life" / stage / "adapter")
        tiny_base().attach("run", LoRA(r=3)).save(root / "run" / "adapter")
    (root / "life" / "recipe.yaml").write_text("stages: [{name: sft}, {name: dpo}]\n")
    assert look(root, "life").folder == root / "life" / "dpo" / "adapter"
    (root / "life" / "dpo" / "finished.json").unlink()
    assert look(root, "life").folder == root / "life" / "sft" / "adapter"
    (root / "life" / "sft" / "finished.json").unlink()
    with pytest.warns(Notice, match="none of the stages in .*life has finished: it is not served"):
        assert list(found_in(root)) == ["run", "sql"]


@pytest.mark.parametrize(
    "broken", ["stages: [{name: ../../outside}]", "stages: [1]", "stages: {", "stages: 3", "[1]"]
)
def test_a_recipe_of_a_chain_leads_nowhere_else(root, tmp_path, broken):
    (root / "run" / "adapter").rename(tmp_path / "outside")
    (tmp_path / "outside" / "finished.json").write_text("{}")
    (root / "run" / "recipe.yaml").write_text(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        assert list(found_in(root)) == ["sql"]


@pytest.mark.filterwarnings("error::graft.errors.Notice")
def test_hidden_folders_are_passed_over_without_a_word(root):
    (root / ".studio").mkdir()
    assert list(found_in(root)) == ["run", "sql"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_never_becomes_a_path(root, name):
    with pytest.raises(AdapterError, match="no name"):
        look(root, name)


def test_links_that_lead_out_and_damaged_folders_are_left_out_by_name(root, tmp_path):
    outside = tmp_path / "outside"
    os.rename(root / "sql", outside)
    os.symlink(outside, root / "sql")
    (root / "broken").mkdir()
    (root / "broken" / "adapter_config.json").write_text("[" * 5000)
    with pytest.warns(Notice) as told:
        assert list(found_in(root)) == ["run"]
    assert {"sql" in str(one.message) or "broken" in str(one.message) for one in told} == {True}


def test_a_root_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        found_in(tmp_path / "nowhere")


def test_an_adapter_that_changed_on_the_disk_is_refused_until_it_is_loaded_by_name(root):
    base = tiny_base()
    registry = Registry(base, root)
    other = base.attach("other", LoRA(r=3))
    other.save(root / "sql")
    base.detach("other")
    with pytest.raises(AdapterError, match="was changed"):
        registry.acquire("sql")
    registry.load("sql")
    version = registry.acquire("sql")
    assert base.adapters[version.adapter].methods[0].r == 3


def test_absurd_settings_are_refused_and_the_older_version_stays(root):
    base = tiny_base()
    registry = Registry(base, root)
    first = registry.acquire("sql")
    config = json.loads((root / "sql" / "adapter_config.json").read_text())
    (root / "sql" / "adapter_config.json").write_text(json.dumps(config | {"r": 2_000_000_000}))
    with pytest.raises(AdapterError):
        registry.load("sql")
    assert registry.acquire("sql") is first and list(base.adapters) == [first.adapter]
