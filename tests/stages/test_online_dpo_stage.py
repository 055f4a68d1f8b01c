"""Online DPO: of the model's own answers the best paid becomes likelier than the worst paid."""

import json
import signal

import asking
import pytest
import torch
from killed_run import finish
from rollout_steps import answer_logprobs, exact_base, prepared, step, written
from torch.testing import assert_close

import graft
from graft.errors import UsageError
from graft.recipe import read
from models import randomise


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("online_dpo"))


def recipe(home, output, **changes):
    stage = {"name": "online_dpo", "group": 4} | changes.pop("stage", {})
    return asking.recipe(home, output, stage, **changes)


def test_the_reward_rises(home, tmp_path):
    train = {"max_steps": 40, "batch_size": 8, "micro_batch_size": 8, "lr": 2e-2, "schedule": "constant"}
    graft.run(recipe(home, tmp_path / "run", stage={"group": 8, "beta": 0.05}, train=train))
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    paid = [line["reward"] for line in steps if "reward" in line]
    assert sum(paid[-5:]) / 5 > sum(paid[:5]) / 5 + 0.2
    assert {"accuracy", "margin", "logp_chosen"} <= set(steps[0])


@pytest.mark.parametrize("objective", ["online_dpo", "online_ipo"])
def test_a_step_is_the_formula_on_the_best_and_the_worst_answer(home, tmp_path, objective):
    base = exact_base(home)
    chosen = read(recipe(home, tmp_path, stage={"objective": objective, "beta": 0.3}))
    stage, rollouts = prepared(base, chosen, tmp_path)
    with base.using("policy"):
        rollouts.step(0, 0)
    sampled = written(rollouts, tmp_path)
    randomise(base.adapters["policy"], 3, 0.05)
    losses = []
    for prompt in range(8):
        texts = [
            base.tokenizer.decode(sampled.answers[prompt * 4 + k], skip_special_tokens=True) for k in range(4)
        ]
        paid = [min(text.count("a"), 5) / 5 for text in texts]
        if len(set(paid)) == 1:
            continue
        pair = sampled.example(prompt, [paid.index(max(paid)), paid.index(min(paid))])
        with torch.no_grad():
            held = answer_logprobs(base, pair, "policy as it started", 1.0)
        ratios = [n - h for n, h in zip(answer_logprobs(base, pair, "policy", 1.0), held, strict=True)]
        if objective == "online_ipo":
            losses.append((ratios[0].mean() - ratios[1].mean() - 1 / 0.6) ** 2)
        else:
            losses.append(-torch.log(torch.sigmoid(0.3 * (ratios[0].sum() - ratios[1].sum()))))
    assert 1 < len(losses) == len(rollouts._now.lessons)
    expected = torch.stack(losses).mean()
    wanted = torch.autograd.grad(expected, base.adapters["policy"].parameters())
    for pack in (False, True):
        loss, metrics, gradients = step(base, stage, rollouts.feed, rollouts._now.lessons, pack=pack, micro=3)
        assert loss == pytest.approx(float(expected), rel=1e-5) and metrics["tokens"] == len(losses)
        for one, two in zip(gradients, wanted, strict=True):
            assert_close(one, two, rtol=1e-4, atol=1e-7)  # the reference is kept in single precision


def test_a_killed_run_ends_with_the_same_bytes(home, tmp_path):
    calm, killed = (recipe(home, tmp_path / name) for name in ("calm", "killed"))
    assert finish(calm) == 0
    assert finish(killed, 12) == -signal.SIGKILL and finish(killed) == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_iterations_without_a_better_answer_teach_nothing_and_say_so(home, tmp_path):
    with pytest.warns(graft.Notice, match="none is better"):
        graft.run(recipe(home, tmp_path / "run", stage={"rewards": f"{home}/rewards.py:same"}))
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    why = [line["left_out"] for line in steps if "eval_loss" not in line]
    assert set(why) == {"no answer is better than another"}


@pytest.mark.parametrize(("key", "value"), [("group", 1), ("beta", 0.0)])
def test_settings_that_mean_nothing_are_refused(home, tmp_path, key, value):
    with pytest.raises(UsageError, match=key):
        graft.run(recipe(home, tmp_path / "run", stage={key: value}))
