"""Recipes: what is understood, what is refused, and how it is said."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from graft.core.cards import REQUIRED, Source, card, cards
from graft.core.registry import find
from graft.errors import GraftError, UsageError
from graft.recipe import Recipe, explain, read
from graft.recipe.settings import type_of
from graft.recipe.stages import stage_cards
from graft.recipe.text import emit, read_text
from graft.recipe.words import SYNONYMS
from graft.stages.stage import find as find_stage


def refusal(source, overrides=()):
    with pytest.raises(UsageError) as caught:
        read(source, overrides)
    return caught.value


def test_every_key_has_a_default_and_a_line_of_help():
    assert all(explain().values())
    assert read({}) == Recipe(method=read({}).method)


def test_a_written_recipe_reads_back_equal(tmp_path):
    recipe = read(
        {"method": {"name": "lora", "target_modules": ["q_proj"]}},
        ["train.lr=1e-4", "train.samples=['a: b # c', \"x\\ny\"]"],
    )
    (tmp_path / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
    assert read(tmp_path / "recipe.yaml") == recipe
    assert read(tmp_path) == recipe.model_copy(
        update={"output": str(tmp_path)}
    )  # a run's folder is where it lies


def test_a_methods_own_seed_is_not_taken_for_the_runs(tmp_path):
    recipe = read({"method": {"name": "ipt", "intrinsic_dim": 4, "seed": 5}, "train": {"seed": 1}})
    assert (recipe.methods[0]["seed"], recipe.train.seed) == (5, 1)
    (tmp_path / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
    assert read(tmp_path / "recipe.yaml") == recipe
    assert read({"method": {"name": "lora", "seed": 3}}).train.seed == 3  # LoRA has none


def test_a_written_recipe_means_the_same_to_another_yaml_reader():
    recipe = read({"train": {"eps": 1e-8, "lr": 2e-5}, "data": {"train": "yes"}})
    assert yaml.safe_load(recipe.yaml()) == recipe.model_dump()


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
KEYS = st.text(max_size=100)  # YAML gives up on keys beyond 1024 characters


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
)
def test_any_value_survives_writing(value):
    assert yaml.safe_load(emit({"key": value}, {"key": "help"})) == {"key": value}


def test_a_misspelt_key_names_the_nearest_and_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain:\n  lerning_rate: 1e-4\n")
    error = refusal(path)
    assert "line 3: train.lerning_rate" in error.given and "train.lr" in error.given and error.remedy


def test_all_problems_are_said_at_once():
    error = refusal(
        {
            "modle": "x",
            "quant": "nf5",
            "train": {"lr": "fast", "batch_size": 0},
            "method": {"name": "lora", "rr": 4},
        },
        ["nonsense"],
    )
    for named in ("modle", "model", "quant", "nf4", "train.lr", "train.batch_size", "method.rr", "nonsense"):
        assert named in error.given


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"objective": "masked"}, "objective"),
        ({"stage": ["sft"]}, "stage"),
        ({"stage": "stf"}, "stage"),
        ({"quant": "nf4", "method": "full"}, "quant"),
        ({"quant": "int8", "group_size": 64}, "group_size"),
        ({"train": {"batch_size": 6, "micro_batch_size": 4}}, "train.micro_batch_size"),
        ({"train": {"paged_budget_mb": 8}}, "train.paged_budget_mb"),
        ({"train": {"patience": 2}, "data": {"eval": None}}, "train.patience"),
        ({"model": {"config": {"model_type": "llama"}, "tokenizer": "t"}, "quant": "nf4"}, "quant"),
        ({"model": {"config": {"model_type": "llama"}, "tokenizer": "t"}, "method": "lora"}, "method"),
        ({"method": ["full", "lora"]}, "method"),
        ({"learning_rate": 1e-3, "train": {"lr": 1e-4}}, "learning_rate"),
        ({"method": "loar"}, "lora"),
        ({"method": 8}, "method"),
        ({"method": [{"r": 8}]}, "method.0"),
        ({"method": {"name": "lora", "r": "eight"}}, "method.r"),
        ({"method": {"name": "lora", "lr": 0}}, "method.lr"),
        ({"method": ["lora", {"name": "prefix", "lr": "fast"}]}, "method.1.lr"),
        ({"method": []}, "method"),
        ({"train": 5}, "train"),
        ({"train": {"lr": True}}, "train.lr"),
        ({"train": {"betas": [0.9]}}, "train.betas"),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": 1e39}}, "train.lr"),
        ({"train": {"lr": 1e38}}, "train.lr"),
        ({"train": {"lr": 1e-50}}, "train.lr"),
        ({1: 2}, "1"),
        ({"gradient_accumulation_steps": "many"}, "gradient_accumulation_steps"),
        ({"model": {"config": {}}}, "model.tokenizer"),
        ({"data": {"columns": ["a"]}}, "data.columns"),
    ],
)
def test_contradictions_and_wrong_values_name_their_key(source, named):
    assert named in refusal(source).given


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1\n- 2",
        "just words",
        "a: 1\na: 2",
        "\t- x",
        "a: &x [*x]",
        "train: {lr: *none}",
        "x: !!python/object:os.system {}",
        "? [a]\n: b",
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "broken.yaml" in refusal(path).given


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00a", b"\x00"])
def test_an_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refusal(path).given


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_no_change_of_a_setting_crashes(word):
    try:
        read({}, [word])
    except GraftError as error:
        assert error.given and error.expected and error.remedy


def test_changes_win_over_the_file():
    assert read({"train": {"lr": 1e-3}}, ["train.lr=1e-4"]).train.lr == 1e-4
    assert read({"train": {"lr": 1e-3}}, ["learning_rate=1e-4"]).train.lr == 1e-4


def test_another_method_drops_the_settings_of_the_first():
    assert "r" not in read({"method": {"name": "lora", "r": 4}}, ["method=full"]).method
    assert read({"method": {"name": "lora", "r": 4}}, ["method=lora", "method.lora_alpha=8"]).method["r"] == 4


HUGGING_FACE = {
    "learning_rate": 1e-4,
    "num_train_epochs": 3,
    "max_steps": 7,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "lr_scheduler_type": "cosine",
    "optim": "paged_adamw_32bit",
    "bf16": True,
    "save_steps": 5,
    "output_dir": "o",
    "max_seq_length": 256,
    "cutoff_len": 256,
    "load_in_4bit": True,
    "bnb_4bit_use_double_quant": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
}


def test_words_of_other_trainers_are_understood_with_a_notice():
    notices = []
    recipe = read(HUGGING_FACE, (), notices)
    train = recipe.train
    assert (train.lr, train.epochs, train.micro_batch_size, train.batch_size, train.schedule) == (
        1e-4,
        3.0,
        4,
        32,
        "cosine",
    )
    assert (train.optimizer, train.max_steps, train.save_every, recipe.data.max_length) == (
        "paged_adamw",
        7,
        5,
        256,
    )
    assert (recipe.quant, recipe.output, recipe.dtype) == ("nf4", "o", "bf16")
    assert (
        recipe.method["r"] == 4
        and recipe.method["lora_alpha"] == 8
        and recipe.method["target_modules"] == ["q_proj"]
    )
    assert any("learning_rate" in notice for notice in notices)


def test_a_default_is_no_contradiction_to_a_word_of_another_trainer(tmp_path):
    (tmp_path / "mine.yaml").write_text("model_name_or_path: m\noutput_dir: there\nnum_train_epochs: 2\n")
    recipe = read(tmp_path / "mine.yaml")
    assert (recipe.output, recipe.model, recipe.train.epochs) == ("there", "m", 2)
    assert read(tmp_path / "mine.yaml", ["output_dir=elsewhere"]).output == "elsewhere"
    (tmp_path / "plain.yaml").write_text("model: m\n")
    assert read(tmp_path / "plain.yaml").output == "runs/plain"
    with pytest.raises(UsageError, match=r"output_dir.*contradicts output: 'here'"):
        read({"output": "here", "output_dir": "there"})


@pytest.mark.parametrize("word", sorted(SYNONYMS))
def test_no_word_of_another_trainer_contradicts_what_nobody_set(word, tmp_path):
    """Only its value may be wrong for our key."""
    (tmp_path / "r.yaml").write_text(f"{word}: 1\n")
    try:
        read(tmp_path / "r.yaml")
    except UsageError as error:
        assert "contradicts" not in str(error)


def test_the_seed_of_the_data_is_not_that_of_the_training():
    recipe = read({"seed": 3, "data": {"seed": 5}})
    assert (recipe.train.seed, recipe.data.seed) == (3, 5)
    assert read({"train": {"seed": 3}}).data.seed == 0
    assert read({}, ["data.seed=4"]).data.seed == 4


def test_a_run_from_before_there_was_a_data_seed_keeps_its_held_out_rows(tmp_path):
    text = read({"train": {"seed": 3}}).yaml()
    old = "".join(line for line in text.splitlines(True) if "  seed: 0" not in line)
    assert "seed: 3" in old
    (tmp_path / "recipe.yaml").write_text(old)
    assert read(tmp_path).data.seed == 3
    (tmp_path / "recipe.yaml").write_text(text)
    assert read(tmp_path).data.seed == 0


def test_every_synonym_means_a_key_that_exists():
    keys = {*explain(), "method.name"} | {f"method.{name}" for name in card("lora").settings}
    assert set(SYNONYMS.values()) <= keys


def test_qlora_is_nf4_and_lora_on_all_linears_and_a_paged_optimizer():
    recipe = read({"method": "qlora"})
    assert (recipe.quant, recipe.method["name"], recipe.method["target_modules"]) == (
        "nf4",
        "lora",
        "all-linear",
    )
    assert recipe.train.optimizer == "paged_adamw_8bit"


def test_qalora_is_int4_and_qa_lora_on_all_linears_and_a_paged_optimizer():
    recipe = read({"method": "qalora", "group_size": 64})
    assert (recipe.quant, recipe.group_size) == ("int4", 64)
    assert (recipe.method["name"], recipe.method["target_modules"]) == ("qa_lora", "all-linear")
    assert recipe.train.optimizer == "paged_adamw_8bit"


def test_a_preset_leaves_alone_what_is_set():
    recipe = read({"method": {"name": "qlora", "r": 4}, "quant": "int8", "train": {"optimizer": "adamw"}})
    assert (recipe.quant, recipe.train.optimizer, recipe.method["r"]) == ("int8", "adamw", 4)


def test_a_fresh_model_is_trained_in_full():
    assert (
        read(
            {"model": {"config": {"model_type": "llama"}, "tokenizer": {"train": "bpe"}}, "stage": "pretrain"}
        ).methods[0]["name"]
        == "full"
    )


@pytest.mark.parametrize("name", sorted(cards()))
def test_a_card_equals_the_dataclass_that_it_was_read_from(name):
    read_, real = cards()[name], find(name)
    assert read_.cls == real.__name__
    fields = {f.name: f for f in dataclasses.fields(real)}
    assert sorted(read_.settings) == sorted(
        fields
    )  # a field over a base's ClassVar stands first in the dataclass
    for key, setting in read_.settings.items():
        if setting.default is REQUIRED:
            assert (
                fields[key].default is dataclasses.MISSING
                and fields[key].default_factory is dataclasses.MISSING
            )
        elif not isinstance(setting.default, Source):
            made = (
                fields[key].default_factory()
                if fields[key].default is dataclasses.MISSING
                else fields[key].default
            )
            assert setting.default == made
        assert setting.help, f"{key} has no line of help"
    for word in ("mergeable", "quantisable", "routable"):
        assert (read_.declared.get(word, True) is True) == bool(getattr(real(), word))  # as it is by default
    assert (
        read_.title
        and read_.doc.strip() == Path(read_.path).read_text(encoding="utf-8").split('"""')[1].strip()
    )


@pytest.mark.parametrize("name", sorted(cards()))
def test_every_setting_of_every_method_has_a_known_type(name):
    for setting in cards()[name].settings.values():
        checked = TypeAdapter(type_of(setting.type))
        if setting.default is not REQUIRED and not isinstance(setting.default, Source):
            checked.validate_python(setting.default)


@pytest.mark.parametrize("annotation", ["list[int]", "int | Path", "int|None", "__import__('os')"])
def test_an_unknown_type_of_a_setting_is_refused(annotation):
    with pytest.raises(UsageError, match="is annotated") as caught:
        type_of(annotation)
    assert annotation in caught.value.given and "TYPES" in caught.value.remedy


def test_every_method_setting_is_accepted_as_its_own_default():
    for name, one in cards().items():
        required = {s.name for s in one.settings.values() if s.default is REQUIRED}
        if not required:
            resolved = read({"method": name}).method
            assert read({"method": dict(resolved)}).method == resolved


def test_lines_are_those_of_the_file(tmp_path):
    (tmp_path / "r.yaml").write_text("model: m\n\ndata:\n  train: x\n  eval: 0.1\n")
    assert read_text(tmp_path / "r.yaml").lines == {"model": 1, "data": 3, "data.train": 4, "data.eval": 5}


def test_a_stage_has_settings_of_its_own_which_are_checked_as_those_of_methods_are(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stage:\n  name: preference\n  objective: ipo\n  bta: 0.2\n  gamma: wide\n")
    error = refusal(path)
    assert "line 4: stage.bta" in error.given and "is not a setting of stage preference" in error.given
    assert "nearest: beta" in error.given and "line 5: stage.gamma" in error.given
    assert "is not float" in error.given


def test_a_stage_with_settings_reads_back_equal_with_their_help(tmp_path):
    recipe = read({"stage": {"name": "preference", "objective": "ipo", "beta": 0.2}})
    assert (recipe.stage_name, recipe.objective, recipe.stage_settings["beta"]) == ("preference", "ipo", 0.2)
    (tmp_path / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
    assert read(tmp_path / "recipe.yaml") == recipe
    settings = stage_cards()["preference"].settings
    assert all(f"# {setting.help}" in recipe.yaml() and setting.help for setting in settings.values())


def test_a_stage_without_settings_stays_a_word():
    assert read({"stage": "sft"}).stage == read({"stage": {"name": "sft"}}).stage == "sft"
    assert read({}).stage_settings == {}


@pytest.mark.parametrize("word", ["dpo", "ipo", "kto", "orpo", "simpo", "hinge", "robust"])
def test_an_objective_of_one_stage_is_a_word_for_it(word):
    notices = []
    recipe = read({"stage": word}, (), notices)
    assert recipe == read({"stage": "preference", "objective": word})
    assert recipe == read({"stage": {"name": "preference", "objective": word}})
    assert any(word in notice and "preference" in notice for notice in notices)


def test_changes_of_a_stages_settings_win_and_another_stage_drops_them():
    given = {"stage": {"name": "dpo", "beta": 0.2}}
    assert read(given, ["stage.beta=0.3"]).stage_settings["beta"] == 0.3
    assert read({"stage": "dpo"}, ["stage.beta=0.3"]).stage_settings["beta"] == 0.3
    assert "beta" not in read(given, ["stage=reward"]).stage_settings


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"stage": {"name": "dpo", "objective": "ipo"}}, "contradicts"),
        ({"stage": "dpo", "objective": "ipo"}, "contradicts stage dpo"),
        ({"stage": {"name": "preference", "objective": "dop"}}, "stage.objective"),
        ({"stage": {"name": ["x"]}}, "stage"),
        ({"stage": {"name": "sft", "beta": 0.1}}, "is not a setting of stage sft"),
        ({"stage": {"name": "preference", "beta": True}}, "stage.beta"),
        ({"stage": "dop"}, "nearest: dpo"),
        ({"stage": 5}, "not the name of a stage"),
    ],
)
def test_wrong_stages_and_settings_are_named(source, named):
    assert named in refusal(source).given


@pytest.mark.parametrize("name", sorted(stage_cards()))
def test_a_stages_card_equals_the_dataclass_that_it_was_read_from(name):
    real = {f.name: f.default for f in dataclasses.fields(find_stage(name)) if f.name != "objective"}
    settings = stage_cards()[name].settings
    assert {key: setting.default for key, setting in settings.items()} == real
    for setting in settings.values():
        assert (
            setting.help and TypeAdapter(type_of(setting.type)).validate_python(setting.default) is not None
        )
