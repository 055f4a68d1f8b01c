"""Words that people use for a method with settings: in recipes, on the command line, among the methods."""

import pytest

from graft.cli import call
from graft.core.cards import cards
from graft.core.presets import PRESETS, presets_of
from graft.core.registry import described
from graft.errors import UsageError
from graft.recipe import read

# What each word means, by the papers, in our settings.
MEANT = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "loftq": {"init_lora_weights": "loftq"},
    "lora_plus": {"loraplus_lr_ratio": 16.0},
    "qlora": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("word", MEANT)
def test_a_preset_is_lora_with_one_setting(word):
    notices = []
    found = read({"method": word}, notices=notices).methods
    assert len(found) == 1 and found[0] == read({"method": {"name": "lora", **MEANT[word]}}).methods[0]
    assert any(notice.startswith(f"{word} is method lora with ") for notice in notices)


def test_every_preset_gives_methods_that_can_be_built():
    for word, preset in PRESETS.items():
        found = read({"method": word}).methods
        assert [one["name"] for one in found] == [one["name"] for one in preset.methods]
        for one in found:
            described(one)


def test_loftq_packs_the_base_unless_told_otherwise():
    assert read({"method": "loftq"}).quant == "nf4"
    assert read({"method": "loftq", "quant": "int4"}).quant == "int4"


def test_mam_is_a_prefix_and_a_parallel_adapter():
    assert [one["name"] for one in read({"method": "mam"}).methods] == ["prefix", "parallel"]
    with pytest.raises(UsageError, match=r"\[\{name: prefix, ...\}, \{name: parallel, ...\}\]"):
        read({"method": {"name": "mam", "num_virtual_tokens": 5}})


def test_settings_beside_a_preset_are_kept():
    (found,) = read({"method": {"name": "dora", "r": 4}}, ["method.lora_alpha=8"]).methods
    assert (found["name"], found["use_dora"], found["r"], found["lora_alpha"]) == ("lora", True, 4, 8)


@pytest.mark.parametrize(
    ("written", "name"), [("DoRA", "dora"), ("LoRA+", "lora_plus"), ("RS-LoRA", "rslora"), ("LoRA", "lora")]
)
def test_the_spelling_of_papers_is_understood(written, name):
    assert read({"method": written}).methods == read({"method": name}).methods


def test_a_preset_is_a_method_on_the_command_line(capsys):
    assert call(["train", "--model", "seedling", "--method", "dora", "--dry-run"]) == 0
    assert "use_dora: true" in capsys.readouterr().out


def test_presets_are_listed_under_their_method_and_have_a_card(capsys):
    assert call(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lora = next(n for n, line in enumerate(lines) if line.startswith("lora "))
    under = [line.split()[0] for line in lines[lora + 1 : lora + 1 + len(presets_of("lora"))]]
    assert under == list(presets_of("lora")) and "dora" in under
    assert call(["methods", "dora"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dora is lora with use_dora=true\n") and cards()["lora"].doc.splitlines()[0] in out
    assert call(["methods", "mam"]) == 0
    assert "num_virtual_tokens" in (out := capsys.readouterr().out) and "reduction_factor" in out
    assert call(["methods", "doraa"]) == 2
    assert "did you mean 'dora'?" in capsys.readouterr().err


def test_the_list_fits_a_terminal_of_80_columns_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr("graft.cli.methods.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert call(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(cards()) + len(PRESETS) and max(map(len, lines)) <= 80


def test_the_stages_of_the_help_are_those_that_recipes_know():
    from graft.cli.words import STAGES
    from graft.recipe.stages import stage_cards

    assert STAGES.split(", ") == list(stage_cards())
