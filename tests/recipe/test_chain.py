"""Recipes of several stages: what each one is told, what is handed on, what is refused and in which line."""

import pytest

from graft.errors import UsageError
from graft.recipe import read
from graft.recipe.chain import last_finished, read_chain

pytestmark = pytest.mark.quick

FILE = """\
model: seedling
method: {name: lora, r: 4}
train: {epochs: 1, lr: 1.0e-3}
stages:
  - {name: first, stage: sft, data: {train: a.jsonl}}
  - {name: judge, stage: reward, train: {lr: 2.0e-3}, data: {train: b.jsonl}}
  - {name: last, stage: {name: preference, beta: 0.3}, data: {train: c.jsonl}}
output: runs/life
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "life.yaml"
    path.write_text(FILE)
    return path


def refused(settings, *overrides):
    with pytest.raises(UsageError) as error:
        read_chain(settings, overrides)
    return error.value.given


def chain(*entries, **shared):
    return {"model": "seedling", "output": "out", **shared, "stages": list(entries)}


def test_a_stage_is_the_ordinary_recipe_of_shared_and_own_keys(file):
    notices = []
    found = read_chain(file, [], notices)
    assert list(found.recipes) == ["first", "judge", "last"]
    method = {"name": "lora", "r": 4}
    assert found.recipes["judge"] == read(
        {
            "model": "seedling", "method": method, "stage": "reward", "adapter": "runs/life/first/adapter",
            "data": {"train": "b.jsonl"}, "train": {"epochs": 1, "lr": 2e-3}, "output": "runs/life/judge",
        }
    )  # fmt: skip
    assert found.recipes["last"].stage_settings["beta"] == 0.3 and found.recipes["last"].train.lr == 1e-3
    assert found.recipes["last"].adapter == "runs/life/first/adapter"  # a reward adapter writes nothing
    assert notices == [
        "stage judge goes on from the adapter of stage first",
        "stage last goes on from the adapter of stage first",
    ]


def test_words_change_what_is_shared_or_one_stage(file):
    found = read_chain(file, ["train.max_steps=3", "judge.train.lr=1e-5", "last.stage.beta=0.5", "output=o"])
    assert [recipe.train.max_steps for recipe in found.recipes.values()] == [3, 3, 3]
    assert [recipe.train.lr for recipe in found.recipes.values()] == [1e-3, 1e-5, 1e-3]
    assert found.recipes["last"].stage_settings["beta"] == 0.5
    assert [recipe.output for recipe in found.recipes.values()] == ["o/first", "o/judge", "o/last"]


def test_words_of_other_trainers_are_understood_in_a_stage():
    found = read_chain(chain("sft", {"stage": "dpo", "learning_rate": 1e-5}, lora_r=3))
    assert found.recipes["dpo"].train.lr == 1e-5 and found.recipes["dpo"].objective == "dpo"
    assert found.recipes["sft"].methods[0]["r"] == 3


def test_bare_words_do_what_people_mean_and_null_trains_anew():
    found = read_chain(chain("sft", "reward", "dpo", {"name": "more", "stage": "ipo"}))
    assert [recipe.adapter for recipe in found.recipes.values()] == [
        None, "out/sft/adapter", "out/sft/adapter", "out/dpo/adapter",
    ]  # fmt: skip
    found = read_chain(chain("sft", {"stage": "dpo", "adapter": None, "method": "ia3"}))
    assert found.recipes["dpo"].adapter is None and found.recipes["dpo"].methods[0]["name"] == "ia3"


def test_a_stage_that_goes_on_has_the_method_of_the_one_before():
    found = read_chain(
        chain({"stage": "sft", "method": {"r": 2}}, {"stage": "dpo"}, method={"name": "qlora", "r": 8})
    )
    assert found.recipes["dpo"].methods[0]["r"] == 2 and found.recipes["dpo"].quant == "nf4"
    assert found.before("dpo").methods == found.recipes["sft"].methods and found.before("dpo").adapter is None
    assert "dpo.method.r  = 4, but the adapter of sft has 8" in refused(
        chain("sft", {"stage": "dpo", "method": {"r": 4}}, method={"name": "lora", "r": 8})
    )
    assert "= ia3, but the adapter of sft is lora" in refused(chain("sft", {"stage": "dpo", "method": "ia3"}))


def test_a_model_that_one_stage_made_is_the_next_ones():
    model = {"config": {"model_type": "llama", "hidden_size": 8}, "tokenizer": {"train": "bpe"}}
    found = read_chain(chain("pretrain", "sft", "dpo", model=model))
    assert [str(recipe.model) for recipe in list(found.recipes.values())[1:]] == ["out/pretrain/model"] * 2
    assert [recipe.adapter for recipe in found.recipes.values()] == [None, None, "out/sft/adapter"]
    assert found.before("dpo").fresh and found.before("dpo").methods[0]["name"] == "lora"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "out/reward/adapter"),
        ("reward", "out/reward/adapter"),
        ("my.rewards:shorter", "my.rewards:shorter"),
        ({"reward": 0.5, "my.rewards:shorter": 2.0}, {"out/reward/adapter": 0.5, "my.rewards:shorter": 2.0}),
        (["reward"], ["out/reward/adapter"]),
    ],
)
def test_rewards_are_an_earlier_stages_adapter_or_a_function(given, found):
    stage = {"name": "ppo"} | ({} if given is None else {"rewards": given})
    notices = []
    chosen = read_chain(chain("sft", "reward", {"stage": stage}), [], notices)
    assert chosen.recipes["ppo"].stage_settings["rewards"] == found
    assert ("stage ppo takes its rewards from stage reward" in notices) == (given is None)


def test_a_judge_may_be_an_earlier_stage_too():
    stages = ["sft", "reward", {"name": "strict", "stage": "reward"}, "ppo"]
    found = read_chain(chain(*stages), ["ppo.stage.judge=reward", "ppo.stage.group=2"])
    settings = found.recipes["ppo"].stage_settings
    assert (settings["rewards"], settings["judge"]) == ("out/strict/adapter", "out/reward/adapter")


def test_rewards_of_nobody_are_refused():
    def asked(name):
        return chain("sft", "reward", {"stage": {"name": "ppo", "rewards": name}})

    assert "ppo.stage.rewards" in refused(asked("rewrad"))
    assert "= rewrad is neither an earlier stage nor a folder; earlier stages: reward" in refused(
        asked("rewrad")
    )


def test_a_chain_is_read_again_as_it_was(file, tmp_path):
    found = read_chain(file, ["judge.train.seed=3"])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "recipe.yaml").write_text(found.yaml())
    notices = []
    again = read_chain(tmp_path / "kept", [], notices)
    assert again.output == str(tmp_path / "kept") and not notices
    assert read_chain(tmp_path / "kept", ["output=runs/life"]).recipes == found.recipes
    assert read_chain(found) is found and read_chain(found, ["train.seed=1"]).recipes["first"].train.seed == 1


def test_all_that_is_wrong_is_told_at_once_with_its_line(file):
    file.write_text(
        FILE.replace("epochs: 1", "epoch: 1").replace("lr: 2.0e-3", "lr: -1").replace("beta", "betta")
    )
    told = refused(file)
    for row in (
        r"line 3: train.epoch       is an unknown key; nearest: train.epochs",
        "line 6: judge.train.lr ",
        "line 7: last.stage.betta ",
    ):
        assert row in told, told
    assert told.count("train.epoch ") == 1 and "3 settings" in told


@pytest.mark.parametrize(
    ("entries", "words", "said"),
    [
        (["sft", "sft"], [], "stages  has 2 stages called sft; give each a name of its own"),
        ([], [], "is not a list of stages"),
        ([{"data": {}}], [], "stages.0  has no name"),
        ([{"name": "train", "stage": "sft"}], [], "cannot be called train"),
        ([{"name": "a.b", "stage": "sft"}], [], "cannot be called a.b"),
        ([{"stage": "sft", "output": "x"}], [], "has an output of its own"),
        (["sft", "rewrad"], [], "rewrad.stage  = 'rewrad' is an unknown stage; nearest: reward"),
        (["sft", {"stage": "dpo", "adapter": "sfd"}], [], "= sfd is neither an earlier stage nor a folder"),
        ([{"stage": "sft", "adapter": "dpo"}, "dpo"], [], "= dpo is this stage or a later one;"),
        (["sft", "dpo"], ["adapter=x"], "belongs to one stage; write it there, for example dpo.adapter"),
        (["sft", "dpo"], ["dppo.train.lr=1"], "dppo  is neither a key nor a stage; nearest: dpo"),
        (["sft", "dpo"], ["dpo.train.lrr=1"], "dpo.train.lrr  is an unknown key; nearest: train.lr"),
        ([{"stage": "sft", "train": {"lr": 1.0}}], ["train.lr=2"], "is every stage's own here; change it"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused_in_words(entries, words, said):
    assert said in refused(chain(*entries), *words)


def test_a_word_that_does_not_reach_every_stage_says_so():
    notices = []
    read_chain(chain("sft", {"stage": "dpo", "train": {"lr": 1.0}}), ["train.lr=2"], notices)
    assert "train.lr of dpo is their own, and stays as it is" in notices


def test_a_folder_counts_as_an_adapter_where_no_stage_has_its_name(tmp_path):
    found = read_chain(chain("sft", {"stage": "dpo", "adapter": str(tmp_path)}))
    assert found.recipes["dpo"].adapter == str(tmp_path) and "dpo" not in found.adapters


def test_a_recipe_of_one_stage_is_no_chain_and_a_chain_is_no_recipe_of_one(file):
    assert read_chain({"stage": "sft"}) is None and read_chain(read({})) is None
    with pytest.raises(UsageError, match="has several stages"):
        read(file)


def test_the_last_finished_stage_stands_for_a_chain(file, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "recipe.yaml").write_text(read_chain(file).yaml())
    with pytest.raises(UsageError, match=r"none of the stages in .* has finished"):
        last_finished(str(home))
    for name in ("first", "judge"):
        (home / name).mkdir()
        (home / name / "finished.json").write_text("{}")
    assert last_finished(str(home)) == str(home / "judge")
    assert (
        last_finished(str(home / "judge")) == str(home / "judge") and last_finished("seedling") == "seedling"
    )


@pytest.mark.parametrize(
    "stages", ["[1]", "[{name: ../away}]", "[{stage: sft}]", "[null]", "[[sft]]", "[{name: 3}]"]
)
def test_a_folder_whose_stages_have_no_names_is_named(tmp_path, stages):
    (tmp_path / "recipe.yaml").write_text(f"stages: {stages}\n")
    with pytest.raises(UsageError, match=r"recipe\.yaml has a stage without a name"):
        last_finished(str(tmp_path))
