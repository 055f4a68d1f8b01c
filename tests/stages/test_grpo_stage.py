"""GRPO and its kin as runs: they are paid more in the end, resume, and take the step written out."""

import itertools
import json
import signal

import asking
import pytest
import torch
from killed_run import finish
from rollout_steps import answer_logprobs, exact_base, prepared, step
from torch.testing import assert_close

import graft
from graft.errors import UsageError
from graft.recipe import read
from graft.stages.grpo import Grpo
from models import randomise


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("grpo"))


@pytest.fixture
def exact(home):
    return exact_base(home)


def recipe(home, output, objective="grpo", **changes):
    stage = {"name": "grpo", "objective": objective, "group": 4, "prompts": 4} | changes.pop("stage", {})
    return asking.recipe(home, output, stage, **changes)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", Grpo.objectives)
def test_the_reward_rises(home, tmp_path, objective):
    lr = {"dr_grpo": 5e-2, "rloo": 5e-2}.get(objective, 3e-2)
    train = {"max_steps": 30, "batch_size": 4, "micro_batch_size": 4, "lr": lr, "schedule": "constant"}
    stage = {"beta": 0.01, "prompts": 4, "group": 8}
    graft.run(recipe(home, tmp_path / "run", objective, stage=stage, train=train))
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    paid = [line["reward"] for line in steps]
    assert sum(paid[-5:]) / 5 > sum(paid[:5]) / 5 + 0.1
    assert {"without_variance", "reward_deviation", "kl", "entropy"} <= set(steps[0])
    assert all(line["ratio"] == pytest.approx(1, abs=1e-4) for line in steps)  # one step for each iteration


def written_out(base, stage, examples, rewards, moved):
    """The loss of a step by the papers' formulas, answer by answer, in double precision.

    rewards: of the answers of every prompt.  moved: changes the policy after it wrote.
    """
    told = []
    with torch.no_grad():
        for example in examples:
            old = answer_logprobs(base, example, "policy", stage.temperature)
            held = answer_logprobs(base, example, "policy as it started", stage.temperature)
            told.append((old, held))
    moved()
    total, answers, tokens = torch.zeros((), dtype=torch.float64), 0, 0
    for example, (old, held), paid in zip(examples, told, rewards, strict=True):
        new = answer_logprobs(base, example, "policy", stage.temperature)
        paid = torch.tensor(paid, dtype=torch.float64)
        if stage.objective == "rloo":
            paid = paid - stage.beta * torch.stack([(o - h).sum() for o, h in zip(old, held, strict=True)])
            gained = [p - (paid.sum() - p) / (len(paid) - 1) for p in paid]
        else:
            scale = 1.0 if stage.objective == "dr_grpo" else paid.std() + 1e-4
            gained = [(p - paid.mean()) / scale for p in paid]
        for n, o, h, a in zip(new, old, held, gained, strict=True):
            answers, tokens = answers + 1, tokens + len(n)
            ratio = torch.exp(n.sum() - o.sum() if stage.objective == "rloo" else n - o)
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            if stage.objective != "rloo":
                loss = loss + stage.beta * (torch.exp(h - n) - (h - n) - 1)
            weight = {"grpo": 1 / len(n), "dr_grpo": 1 / stage.max_new_tokens}.get(stage.objective, 1.0)
            total = total + weight * loss.sum()
    return total / (tokens if stage.objective in ("dapo", "bnpo") else answers)


@pytest.mark.parametrize("objective", Grpo.objectives)
def test_a_step_is_the_formula_packed_in_any_micro_batches_checkpointed_and_with_kernels_off(
    home, exact, tmp_path, objective
):
    stage = {"temperature": 0.8, "beta": 0.1, "clip_high": 0.28}
    chosen = read(recipe(home, tmp_path, objective, stage=stage))
    stage, rollouts = prepared(exact, chosen, tmp_path)
    with exact.using("policy"):
        rollouts.step(0, 0)
    examples = rollouts._now.lessons
    rewards = []
    for example in examples:
        ends = [0, *example.parts["ends"]]
        texts = [
            exact.tokenizer.decode(example.parts["answers"][a:b], skip_special_tokens=True)
            for a, b in itertools.pairwise(ends)
        ]
        rewards.append([min(text.count("a"), 5) / 5 for text in texts])
    assert any(len(set(paid)) > 1 for paid in rewards)
    moved = lambda: randomise(exact.adapters["policy"], 3, 0.05)
    expected = written_out(exact, stage, examples, rewards, moved)
    wanted = torch.autograd.grad(expected, exact.adapters["policy"].parameters())
    metrics = None
    for pack, micro, kernels, again in itertools.product((False, True), (1, 8), (True, False), (False, True)):
        exact.faster(kernels)
        exact.checkpointing(again)
        exact.train(True, noise=False)
        found = step(exact, stage, rollouts.feed, examples, pack=pack, micro=micro)
        exact.train(False)
        # What an iteration keeps is in single precision.
        assert found[0] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
        for one, two in zip(found[2], wanted, strict=True):
            assert_close(one, two, rtol=1e-4, atol=1e-6)
        metrics = metrics or found[1]
        assert found[1] == pytest.approx(metrics, rel=1e-6)


def test_a_run_killed_while_it_writes_and_while_it_learns_ends_with_the_same_bytes(home, tmp_path):
    calm, killed = (recipe(home, tmp_path / name, stage={"epochs": 2}) for name in ("calm", "killed"))
    assert finish(calm) == 0
    for forward in (4, 12, 8):
        assert finish(killed, forward) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoints").exists()
    assert finish(killed) == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize(("key", "value"), [("group", 1), ("clip", 0.0), ("clip_high", -1.0)])
def test_settings_that_mean_nothing_are_refused(home, tmp_path, key, value):
    with pytest.raises(UsageError, match=key):
        graft.run(recipe(home, tmp_path / "run", stage={key: value}))


def test_groups_of_one_reward_are_told(home, tmp_path):
    with pytest.warns(graft.Notice, match="none is better"):
        graft.run(recipe(home, tmp_path / "run", stage={"rewards": f"{home}/rewards.py:same"}))
    assert lines(tmp_path / "run")[0]["without_variance"] == 1
