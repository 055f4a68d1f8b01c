"""PPO as a run: it is paid more in the end, resumes inside of iterations, and takes the step written out."""

import itertools
import json
import signal
from dataclasses import replace

import asking
import pytest
import rollout_steps
import torch
from killed_run import finish
from rollout_steps import answer_logprobs, exact_base, prepared
from safetensors.torch import load_file
from torch.testing import assert_close

import graft
from graft.errors import TrainingError, UsageError
from graft.recipe import read
from graft.stages.ppo import Ppo, values_of
from models import randomise

SILENT = lambda mask: None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("ppo"))


def recipe(home, output, **changes):
    stage = {"name": "ppo", "epochs": 2} | changes.pop("stage", {})
    return asking.recipe(home, output, stage, **changes)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_the_reward_rises_near_the_reference(home, tmp_path, value):
    stage = {"value": value, "epochs": 4, "prompts": 16, "group": 4, "beta": 0.01}
    train = {"max_steps": 96, "batch_size": 8, "micro_batch_size": 8, "lr": 2e-2, "schedule": "constant"}
    result = graft.run(recipe(home, tmp_path / "run", stage=stage, train=train))
    before, after = result.scores["before"], result.scores["after"]
    assert 0 < after["kl"] < 50 and before["kl"] == 0
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    paid = [line["reward"] for line in steps if "reward" in line]
    assert sum(paid[-3:]) / 3 > sum(paid[:3]) / 3 + 0.1
    whole = {"reward", "reward_letters", "kl", "length", "ended", "entropy", "beta", "explained_variance"}
    assert whole <= set(steps[0]) and not whole & set(steps[1])
    assert {"ratio", "clip_fraction", "approximate_kl", "policy_loss", "value_loss"} <= set(steps[1])
    assert steps[0]["ratio"] == pytest.approx(1, abs=1e-5) and steps[0]["approximate_kl"] < 1e-9
    assert (tmp_path / "run/values/adapter_model.safetensors").exists()
    assert not any(
        key.endswith("score.weight") for key in load_file(result.adapter / "adapter_model.safetensors")
    )
    timing = (tmp_path / "run/timing.jsonl").read_text()
    assert "rollout_seconds" in timing


@pytest.fixture
def exact(home):
    return exact_base(home)


def step(base, *arguments, **keywords):
    return rollout_steps.step(base, *arguments, **keywords, also=[values_of("policy")])


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_a_step_is_the_same_packed_in_any_micro_batches_checkpointed_and_with_kernels_off(
    home, exact, tmp_path, value
):
    chosen = read(recipe(home, tmp_path, stage={"value": value, "group": 2, "prompts": 4}))
    stage, rollouts = prepared(exact, chosen, tmp_path)
    with exact.using("policy"):
        rollouts.step(0, 0)
    examples = rollouts._now.lessons
    randomise(exact.adapters["policy"], 3, 0.05)  # it has moved since it wrote
    loss, metrics, gradients = step(exact, stage, rollouts.feed, examples, pack=False, micro=2)
    assert metrics["clipped"] > 0
    for pack, micro, kernels, again in itertools.product((True, False), (1, 8), (True, False), (False, True)):
        exact.faster(kernels)
        exact.checkpointing(again)
        exact.train(True, noise=False)
        other = step(exact, stage, rollouts.feed, examples, pack=pack, micro=micro)
        exact.train(False)
        assert other[0] == pytest.approx(loss, rel=1e-6, abs=1e-8)
        for name, number in metrics.items():
            assert other[1][name] == pytest.approx(number, rel=1e-6, abs=1e-6), name
        for one, two in zip(gradients, other[2], strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-7)  # the head is in single precision


def test_the_loss_and_its_gradient_are_those_of_the_formulas_written_out(home, exact, tmp_path):
    """Everything from the answers on, answer by answer and token by token, in double precision."""
    chosen = read(recipe(home, tmp_path, stage={"temperature": 0.7, "beta": 0.3, "gamma": 0.9, "prompts": 4}))
    stage, rollouts = prepared(exact, chosen, tmp_path)
    randomise(exact.adapters[values_of("policy")], 5, 0.1)
    with exact.using("policy"):
        rollouts.step(0, 0)
    examples = rollouts._now.lessons
    head = dict(exact.adapters[values_of("policy")].named_parameters())

    def logits_and_values(example, adapter):
        (logprobs,) = answer_logprobs(exact, example, adapter, 0.7)
        ids = torch.tensor([[*example.ids, *example.parts["answers"]]])
        with exact.using(adapter):
            states = exact.hidden(ids)
        (weight,) = head.values()
        return logprobs, (states[0, len(example.ids) - 1 : -1] @ weight.T.double())[:, 0]

    texts = [exact.tokenizer.decode(e.parts["answers"], skip_special_tokens=True) for e in examples]
    paid = [min(text.count("a"), 5) / 5 for text in texts]
    told = []
    with torch.no_grad():
        for example, reward in zip(examples, paid, strict=True):
            old, values = logits_and_values(example, "policy")
            held, _ = logits_and_values(example, "policy as it started")
            rewards = -0.3 * (old - held)
            rewards[-1] += reward - sum(paid) / len(paid)  # counted from the first answers' mean
            gained, after, following = torch.zeros_like(values), 0.0, 0.0
            for t in reversed(range(len(values))):
                delta = rewards[t] + 0.9 * following - values[t]
                after = delta + 0.9 * 0.95 * after
                gained[t], following = after, values[t]
            told.append((old, values, gained, gained + values))
    every = torch.cat([gained for _, _, gained, _ in told])
    whiten = lambda x: (x - every.mean()) / (every.var() + 1e-8).sqrt()
    randomise(exact.adapters["policy"], 3, 0.05)
    count = sum(len(gained) for _, _, gained, _ in told)
    total = torch.zeros((), dtype=torch.float64)
    for example, (old, before, gained, returns) in zip(examples, told, strict=True):
        new, values = logits_and_values(example, "policy")
        ratio = torch.exp(new - old)
        policy = torch.maximum(-whiten(gained) * ratio, -whiten(gained) * ratio.clamp(0.8, 1.2))
        near = torch.minimum(torch.maximum(values, before - 0.2), before + 0.2)
        total = (
            total + (policy + 0.1 * 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)).sum()
        )
    parameters = [*exact.adapters["policy"].parameters(), *head.values()]
    expected = torch.autograd.grad(total / count, parameters)
    loss, _, gradients = step(exact, stage, rollouts.feed, examples, pack=False, micro=2)
    # What an iteration keeps of old probabilities, values and advantages is in single precision.
    assert loss == pytest.approx(float(total) / count, rel=1e-5, abs=1e-6)
    for one, two in zip(gradients, expected, strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_run_killed_while_it_writes_and_while_it_learns_ends_with_the_same_bytes(home, tmp_path):
    calm, killed = (recipe(home, tmp_path / name, stage={"kl_target": 0.5}) for name in ("calm", "killed"))
    assert finish(calm) == 0
    for forward in (4, 14, 9):
        assert finish(killed, forward) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoints").exists()
    assert finish(killed) == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "values/adapter_model.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_the_reference_is_the_adapter_that_training_started_from(home, tmp_path):
    first = graft.run(recipe(home, tmp_path / "first", train={"lr": 2e-2}))
    settings = recipe(
        home, tmp_path / "second", adapter=str(first.adapter), train={"lr": 1e-12, "max_steps": 2}
    )
    del settings["method"]
    second = graft.run(settings)
    assert second.scores["after"]["kl"] == pytest.approx(0, abs=1e-4)
    assert first.scores["after"]["kl"] > 1e-3


def test_beta_follows_the_divergence(home, tmp_path):
    graft.run(recipe(home, tmp_path / "run", stage={"kl_target": 1e-3, "kl_horizon": 10}, train={"lr": 2e-2}))
    betas = [line["beta"] for line in lines(tmp_path / "run") if "beta" in line]
    assert (betas[0] == 0.05 and betas[-1] > betas[1] > 0.05) or betas[1] < 0.05


def test_steps_are_left_out_where_the_policy_has_moved_too_far(home, tmp_path):
    graft.run(recipe(home, tmp_path / "run", stage={"epochs": 4, "stop_kl": 1e-7}, train={"lr": 2e-2}))
    steps = [line for line in lines(tmp_path / "run") if "step" in line and "eval_loss" not in line]
    assert ["left_out" in line for line in steps] == [False, False, *[True] * 6]


def test_a_policy_that_is_not_the_one_that_wrote_is_an_error(home, tmp_path, monkeypatch):
    logprobs = Ppo.loss

    def other(self, base, batch):
        return logprobs(replace(self, temperature=2.0), base, batch)

    monkeypatch.setattr(Ppo, "loss", other)
    with pytest.raises(TrainingError, match="mean ratio of probabilities is"):
        graft.run(recipe(home, tmp_path / "run"))
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_of_the_adapter_is_off(home, tmp_path, dropout):
    method = {"name": "lora", "r": 4, "target_modules": "all-linear", "lora_dropout": dropout}
    graft.run(recipe(home, tmp_path / "run", method=method, train={"max_steps": 2}))
    assert lines(tmp_path / "run")[0]["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip", 0.0), ("gamma", 1.5), ("kl", "k4"), ("value", "none"), ("temperature", 0.0), ("rewards", [])],
)
def test_settings_that_mean_nothing_are_refused(home, tmp_path, key, value):
    with pytest.raises(UsageError, match=key):
        graft.run(recipe(home, tmp_path / "run", stage={key: value}))


def test_four_bits_and_one_reward_model_from_which_values_begin(home, tmp_path):
    """Policy, reference, reward and value on one base of four bits."""
    from compared import recipe as compared
    from tiny_folder import write_rows

    pairs = [
        {"prompt": row["prompt"], "chosen": "A banana, a pan, a map.", "rejected": "The sun is too hot."}
        for row in asking.prompts()
    ]
    write_rows(home / "pairs.jsonl", pairs)
    reward = graft.run(compared(home, tmp_path / "reward", "reward", "pairs", 1e-2, quant="nf4"))
    settings = recipe(
        home, tmp_path / "run", quant="nf4",
        stage={
            "rewards": {str(tmp_path / "reward"): 1, f"{home}/rewards.py:letters": 0.5}, "value": "reward",
        },
    )  # fmt: skip
    graft.run(settings)
    first = lines(tmp_path / "run")[0]
    assert {"reward_reward", "reward_letters"} <= set(first) and reward.adapter.exists()
    values = load_file(tmp_path / "run/values/adapter_model.safetensors")
    assert any("lora_A" in key for key in values) and any("score" in key for key in values)
