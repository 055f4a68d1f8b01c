"""What runs away is said once, in words; a run that stops for it has lost nothing."""

import warnings

import asking
import pytest
import torch

import graft
from graft.data.encode import Example
from graft.data.sampled import Sampled
from graft.errors import CheckpointError, TrainingError
from graft.stages import runaway
from graft.stages.ppo import Ppo

WELL = {"kl": 1.0, "length": 20.0, "entropy": 2.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("runaway"))


def paid(*groups):
    """Answers of these rewards, a list for each prompt."""
    flat = [reward for group in groups for reward in group]
    rewards = {"total": torch.tensor(flat)}
    prompts = [Example([5], [-100]) for _ in groups]
    return Sampled(prompts, range(len(prompts)), [[6]] * len(flat), [True] * len(flat), {}, rewards)


VARIED = paid([0.0, 1.0], [0.5, 0.25])


def found(memory, sampled=VARIED, limit=50.0, **facts):
    return runaway.found(sampled, WELL | facts, memory, kl_limit=limit)


def test_a_run_that_goes_well_is_told_nothing():
    memory = {}
    for step in range(5):
        assert found(memory, kl=10.0 * step, length=20.0 - step, entropy=2.0 - 0.3 * step) == []
    assert memory["first"] == {"length": 20.0, "entropy": 2.0} and memory["told"] == []


@pytest.mark.parametrize(
    ("facts", "limit", "words"),
    [
        ({"kl": 50.1}, 50.0, ["left its reference", "50.1 nats", "stage.kl_limit=50", "stage.beta"]),
        ({"kl": 50.0}, 50.0, []),
        ({"kl": 1e9}, 0.0, []),  # no limit
        ({"kl": -60.0}, 50.0, []),
        ({"length": 9.9}, 50.0, ["shrunk from 20 to 9.9 tokens"]),  # below half of 20
        ({"length": 10.1}, 50.0, []),
        ({"entropy": 0.39}, 50.0, ["entropy has fallen from 2.00 to 0.390 nats"]),
        ({"entropy": 0.41}, 50.0, []),
    ],
)
def test_numbers_that_run_away_are_named(facts, limit, words):
    memory = {}
    found(memory)
    texts = found(memory, limit=limit, **facts)
    assert len(texts) == bool(words)
    for word in words:
        assert word in texts[0]


@pytest.mark.parametrize(
    ("sampled", "words"),
    [
        (paid([0.5, 0.5], [0.5, 0.5]), "all 4 answers are paid 0.5"),
        (paid([0.5], [0.5], [0.5]), "all 3 answers are paid 0.5"),
        (paid([0.5]), None),  # one answer tells nothing
        (paid([0.5], [0.25]), None),  # nor do groups of one
        (paid(*[[float(i)] * 2 for i in range(9)], [0.0, 1.0]), "90% of the groups"),
        (paid(*[[float(i)] * 2 for i in range(8)], [0.0, 1.0], [0.0, 1.0]), None),  # 80 %
        (paid([1.0, 1.0], [2.0, 2.0]), "100% of the groups"),
    ],
)
def test_rewards_that_teach_nothing_are_named(sampled, words):
    texts = found({}, sampled)
    assert len(texts) == bool(words) and (not words or words in texts[0])


def test_each_kind_is_told_once_and_another_still_is():
    memory = {}
    found(memory)
    (first,) = found(memory, kl=60.0)
    assert "reference" in first
    assert found(memory, kl=70.0) == []
    both = found(memory, paid([1.0, 1.0], [1.0, 1.0]), kl=80.0, length=1.0)
    assert len(both) == 2 and "shrunk" in both[0] and "paid 1" in both[1]
    assert found(memory, paid([1.0, 1.0], [1.0, 1.0]), kl=80.0, length=1.0) == []
    assert memory["told"] == ["divergence", "length", "rewards"]


def test_ignore_looks_at_nothing():
    bad = WELL | {"kl": 1e9}
    for way, expected in (("ignore", 0), ("warn", 1), ("stop", 1)):
        stage = Ppo("ppo", rewards="x", runaway=way)
        assert len(stage.troubles(VARIED, bad, {})) == expected


def recipe(home, output, way, reward="same", **changes):
    stage = {"name": "ppo", "rewards": f"{home}/rewards.py:{reward}", "runaway": way, "epochs": 2}
    rows = {"eval": None}
    return asking.recipe(home, output, stage | changes.pop("stage", {}), data=rows, **changes)


def notices(settings):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        result = graft.run(settings)
    return [str(w.message) for w in heard if issubclass(w.category, graft.Notice)], result


def test_a_run_says_it_once_or_not_at_all(home, tmp_path):
    few = {"max_steps": 6}  # three iterations
    told, result = notices(recipe(home, tmp_path / "warn", "warn", train=few))
    assert len([text for text in told if "answers are paid 1" in text]) == 1
    assert any("answers are paid 1" in text for text in result.notes)
    told, _ = notices(recipe(home, tmp_path / "ignore", "ignore", train=few))
    assert not [text for text in told if "are paid" in text]


def test_a_run_that_stops_has_lost_nothing_and_goes_on_where_it_was_told_to(home, tmp_path):
    """It goes on with stage.runaway=warn, or another limit, to the bytes of a run that never stopped."""
    train = {"max_steps": 6, "lr": 5e-2, "save_every": 1}
    stage = {"kl_limit": 0.01}
    stopping = recipe(home, tmp_path / "run", "stop", "letters", train=train, stage=stage)
    left = r"iteration \d: the policy has left its reference.*stage\.runaway=warn"
    with pytest.raises(TrainingError, match=left):
        graft.run(stopping)
    saved = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    assert saved and not (tmp_path / "run/adapter").exists()
    with pytest.raises(TrainingError, match="left its reference"):
        graft.run(stopping)  # the same command says the same
    assert sorted((tmp_path / "run/checkpoints").glob("step-*")) == saved
    _, result = notices(recipe(home, tmp_path / "run", "warn", "letters", train=train, stage=stage))
    _, calm = notices(recipe(home, tmp_path / "calm", "ignore", "letters", train=train))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "values/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    assert result.steps == calm.steps == 6


def test_another_weight_of_the_divergence_is_another_run(home, tmp_path):
    """What changes the steps is refused in the folder of a run that has taken some."""
    stage = {"kl_limit": 0.01}
    train = {"max_steps": 6, "lr": 5e-2, "save_every": 1}
    with pytest.raises(TrainingError):
        graft.run(recipe(home, tmp_path / "run", "stop", "letters", train=train, stage=stage))
    changed = recipe(home, tmp_path / "run", "stop", "letters", train=train, stage=stage | {"beta": 0.5})
    with pytest.raises(CheckpointError, match=r"stage\.beta"):
        graft.run(changed)
