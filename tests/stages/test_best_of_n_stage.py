"""Rejection sampling: the best paid answer of each prompt is learnt, as fine-tuning on it would."""

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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("best"))


def recipe(home, output, **changes):
    stage = {"name": "best_of_n", "group": 4} | changes.pop("stage", {})
    return asking.recipe(home, output, stage, **changes)


def test_the_reward_rises(home, tmp_path):
    train = {"max_steps": 40, "batch_size": 8, "micro_batch_size": 8, "lr": 2e-2, "schedule": "constant"}
    graft.run(recipe(home, tmp_path / "run", stage={"group": 8}, train=train))
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    paid = [line["reward"] for line in steps if "reward" in line]
    assert sum(paid[-5:]) / 5 > sum(paid[:5]) / 5 + 0.2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_step_is_fine_tuning_on_the_best_answers(home, tmp_path, share):
    base = exact_base(home)
    chosen = read(recipe(home, tmp_path, stage={"share": share, "temperature": 0.9}))
    stage, rollouts = prepared(base, chosen, tmp_path)
    with base.using("policy"):
        rollouts.step(0, 0)
    sampled = written(rollouts, tmp_path)
    total, tokens, best = 0.0, 0, []
    for prompt in range(8):
        texts = [
            base.tokenizer.decode(sampled.answers[prompt * 4 + k], skip_special_tokens=True) for k in range(4)
        ]
        paid = [min(text.count("a"), 5) / 5 for text in texts]
        best.append((max(paid), -prompt, paid.index(max(paid))))
    for _, number, place in sorted(best, reverse=True)[: round(8 * share)]:
        (logprobs,) = answer_logprobs(base, sampled.example(-number, [place]), "policy", 1.0)
        total, tokens = total - logprobs.sum(), tokens + len(logprobs)
    wanted = torch.autograd.grad(total / tokens, base.adapters["policy"].parameters())
    for pack in (False, True):
        loss, metrics, gradients = step(base, stage, rollouts.feed, rollouts._now.lessons, pack=pack, micro=3)
        assert loss == pytest.approx(float(total) / tokens, rel=1e-9) and metrics["tokens"] == tokens
        for one, two in zip(gradients, wanted, strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-7)  # gradients are kept in single precision


def test_a_killed_run_ends_with_the_same_bytes(home, tmp_path):
    calm, killed = (recipe(home, tmp_path / name) for name in ("calm", "killed"))
    assert finish(calm) == 0
    assert finish(killed, 12) == -signal.SIGKILL and finish(killed) == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize(("key", "value"), [("group", 1), ("share", 0.0), ("beta", 0.1)])
def test_settings_that_mean_nothing_are_refused(home, tmp_path, key, value):
    with pytest.raises(UsageError, match=key):
        graft.run(recipe(home, tmp_path / "run", stage={key: value}))
