"""Reward modelling as a run: it learns, resumes, writes PEFT's files, reads rewards at the last token."""

import itertools
import json
import math
from dataclasses import replace

import compared
import peft
import pytest
import torch
from tiny_folder import ANIMALS, TOYS, write_model, write_rows
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

import graft
from graft.data.answer_batches import AnswerBatches
from graft.data.feed import Feed
from graft.errors import UsageError
from graft.models.load import load
from graft.objectives.reward import answer_rewards
from graft.recipe import read
from graft.runs.open import open_model
from graft.runs.score import score
from graft.stages.stage import stage_of
from graft.training.step import measure
from models import randomise

SILENT = lambda mask: None
WITH_MARGIN = {"name": "reward", "margin": 1.0}


def pairs(count=48):
    """Pairs in which the answer that names a toy is preferred; it is the longer one in half of them."""
    shorter, longer = "No.", "There is nothing at all that the day wants of what it does."
    return [
        {
            "prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want? ",
            "chosen": f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}.",
            "rejected": (shorter, longer)[i // 2 % 2],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    write_model(folder / "model")
    write_rows(folder / "pairs.jsonl", pairs())
    ranked = [
        {
            "prompt": row["prompt"],
            "responses": [row["chosen"], row["rejected"], f"{i} {i}"],
            "scores": [3.5, 2, 2],
        }
        for i, row in enumerate(pairs(9))
    ]
    write_rows(folder / "rankings.jsonl", ranked)
    write_rows(
        folder / "answers.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs()]
    )
    return folder


def recipe(home, output, stage="reward", rows="pairs", **changes):
    return compared.recipe(home, output, stage, rows, 5e-3, **changes)


@pytest.fixture(scope="module")
def done(home):
    return graft.run(recipe(home, home / "done"))


def test_it_learns_which_answers_are_preferred_and_is_set_beside_the_length(home, done):
    (title, baseline), (_, after) = done.scores.items()
    assert title in ("the longer one", "the shorter one")
    assert 0.5 <= baseline["accuracy"] < 0.8 < 0.95 < after["accuracy"]
    assert set(after) == {"loss", "accuracy", "margin", "calibration", "length_bias"}
    assert after["loss"] < math.log(2) and after["margin"] > 0 and -1 <= after["length_bias"] <= 1
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert steps[-1]["loss"] < steps[0]["loss"] and {"margin", "reward_chosen", "accuracy"} <= set(steps[0])
    curve = json.loads((done.folder / "evaluation.json").read_text())["curves"]["calibration"]
    assert sum(pairs for *_, pairs in curve) == 12 and all(0.5 <= sure <= 1 for sure, *_ in curve)
    error = sum(pairs * abs(right - sure) for sure, right, pairs in curve) / 12
    assert after["calibration"] == pytest.approx(error)
    assert "as it should be" in (done.folder / "report.html").read_text()
    again = score(open_model(str(done.folder)), read(done.folder))
    assert again.columns["after"] == pytest.approx(after, rel=1e-4, abs=1e-5)


def test_peft_and_transformers_read_its_files_as_a_classifier_with_one_label(home, done):
    config = json.loads((done.adapter / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    model = AutoModelForSequenceClassification.from_pretrained(home / "model", num_labels=1)
    theirs = peft.PeftModel.from_pretrained(model, done.adapter).eval()
    base = load(str(home / "model"), dtype="fp32")
    base.load_adapter(done.adapter, "r")
    _, feed = prepared(base, read(done.folder))
    (batch,) = replace(feed, micro_batch_size=99).step(0, 0)
    with base.using("r"), torch.no_grad():
        found = answer_rewards(base, batch)
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        for row, length in enumerate(mask.sum(1).tolist()):
            wanted = theirs(input_ids=ids[row : row + 1, :length]).logits[0, 0]
            assert float(found[row]) == pytest.approx(float(wanted), abs=1e-5)
    assert found.std() > 0.1


def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(home, done, tmp_path):
    class Stop(graft.Observer):
        def step(self, record):
            if record["step"] == 7:
                raise KeyboardInterrupt

    settings = recipe(home, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        graft.run(settings, observer=Stop())
    resumed = graft.run(settings)
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "evaluation.json"):
        assert (done.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


def test_it_goes_on_from_an_adapter_to_which_it_adds_a_head(home, tmp_path):
    tuned = graft.run(recipe(home, tmp_path / "sft", "sft", "answers"))
    settings = recipe(home, tmp_path / "run", adapter=str(tuned.adapter), train={"lr": 1e-12, "max_steps": 1})
    del settings["method"]
    result = graft.run(settings)
    base = load(str(home / "model"), dtype="fp32")
    before = base.load_adapter(tuned.adapter, "before").checkpoint_state()
    after = base.load_adapter(result.adapter, "after")
    assert after.head.num_labels == 1
    state = after.checkpoint_state()
    assert len(state) == len(before) + 1
    for key, tensor in before.items():
        assert_close(state[key], tensor, rtol=0, atol=1e-9)


def test_the_first_rewards_differ_by_about_one(home):
    """N(0, 1/(D + 1)) on states of unit scale: the spread of Stiennon et al.'s code."""
    from graft.methods.task_head import Classifier, TaskHead

    base = load("seedling", dtype="fp32")
    weights = torch.cat([base.attach(f"r{i}", HEAD(TaskHead)).parameters()[0] for i in range(8)])
    width = weights.shape[1]
    assert isinstance(base.adapters["r0"].inserts[0][1], Classifier)
    # The error of a standard deviation of n numbers is 1/sqrt(2n) of it.
    assert float(weights.std()) == pytest.approx((width + 1) ** -0.5, rel=4 / math.sqrt(2 * weights.numel()))


def HEAD(task_head):
    return task_head(num_labels=1, pool="last", init="unit")


# Arithmetic


def prepared(base, chosen):
    stage = stage_of(chosen)
    data = graft.data.prepare(chosen.data, base.tokenizer, stage, cache=False)
    batches = stage.batches(base, chosen.data.max_length, pack=False)
    return stage, Feed(data.train, batches, batch_size=len(data.train), micro_batch_size=4)


@pytest.fixture
def exact(home):
    base = load(str(home / "model"), dtype="fp32")
    base.model.double()
    adapter = base.attach(
        "r", [graft.LoRA(r=2, target_modules=["q_proj", "down_proj"]), graft.TaskHead(num_labels=1)]
    )
    randomise(adapter)
    for _, insert in adapter.inserts:
        insert.double()
    return base


def test_a_step_is_the_same_packed_in_any_micro_batches_checkpointed_and_with_kernels_off(
    home, exact, tmp_path
):
    stage, feed = prepared(exact, read(recipe(home, tmp_path, WITH_MARGIN, "rankings")))

    def step(pack, micro):
        given = replace(feed, batches=stage.batches(exact, 64, pack=pack), micro_batch_size=micro)
        with exact.using("r"):
            measured = measure(exact, exact.adapters["r"], stage.loss, given.step(0, 0), SILENT)
        return measured, [p.grad.clone() for p in exact.adapters["r"].parameters()]

    usual, gradients = step(False, 2)
    assert usual.tokens == 2 * len(feed.examples)  # two of the three scores are equal
    for pack, micro, kernels, again in itertools.product(
        (True, False), (1, 64), (True, False), (False, True)
    ):
        exact.faster(kernels)
        exact.checkpointing(again)
        exact.train(True)
        other, found = step(pack, micro)
        exact.train(False)
        assert other.loss == pytest.approx(usual.loss, rel=1e-6)
        assert other.metrics["margin"] == pytest.approx(usual.metrics["margin"], rel=1e-6)
        for one, two in zip(gradients, found, strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_loss_and_gradient_are_autograds_of_the_plain_formula_on_every_answer_alone(home, exact, tmp_path):
    stage, feed = prepared(exact, read(recipe(home, tmp_path, WITH_MARGIN, "rankings")))
    adapter = exact.adapters["r"]
    with exact.using("r"):
        batches = replace(feed, batches=stage.batches(exact, 64, pack=True)).step(0, 0)
        measured = measure(exact, adapter, stage.loss, batches, SILENT)
        gradients = [p.grad.clone() for p in adapter.parameters()]
        for p in adapter.parameters():
            p.grad = None
        losses = []
        for example in feed.examples:
            ends, said = example.parts["ends"], example.parts["answers"]
            # The task head of the whole model, on prompt and answer without any padding.
            r = [
                exact(torch.tensor([example.ids + said[a:b]]))[0][0, 0]
                for a, b in zip([0, *ends[:-1]], ends, strict=True)
            ]
            for worse in (1, 2):  # scores 3.5, 2, 2
                apart = r[0] - r[worse] - 1.5
                losses.append(-torch.log(torch.sigmoid(apart)) + 0.01 * (r[0] + r[worse]) ** 2)
        total = torch.stack(losses).mean()
        total.backward()
    assert measured.loss == pytest.approx(float(total), rel=1e-6)
    for one, p in zip(gradients, adapter.parameters(), strict=True):
        assert_close(one, p.grad, rtol=1e-5, atol=1e-6)  # norms and the head's states compute in fp32


def test_the_reward_is_read_at_the_last_token_although_padding_looks_like_it(home, exact, tmp_path):
    exact.tokenizer.pad_token = exact.tokenizer.eos_token
    stage, feed = prepared(exact, read(recipe(home, tmp_path)))
    batches = stage.batches(exact, 64)
    assert isinstance(batches, AnswerBatches) and batches.pad == exact.tokenizer.eos_token_id
    batch = batches.padded(feed.examples[:6])
    lengths = batch.inputs["attention_mask"].sum(1)
    ids = batch.inputs["input_ids"]
    assert (ids.flatten()[batch.last] == batches.pad).all() and (lengths < ids.shape[1]).any()
    with exact.using("r"), torch.no_grad():
        found = answer_rewards(exact, batch)
        for row, length in enumerate(lengths.tolist()):
            alone = exact(ids[row : row + 1, :length])[0][0, 0]
            assert float(found[row]) == pytest.approx(float(alone), abs=1e-6)


# Settings and refusals


def test_margins_follow_the_scores_or_are_off(home, exact, tmp_path):
    chosen = read(recipe(home, tmp_path, WITH_MARGIN, "rankings"))
    stage, feed = prepared(exact, chosen)
    (batch,) = replace(feed, micro_batch_size=99).step(0, 0)
    with exact.using("r"), torch.no_grad():
        rewards = answer_rewards(exact, batch)
        for margin in (0.0, 1.0, 2.0):
            loss, _ = replace(stage, margin=margin, centring=0.0).loss(exact, batch)
            better, worse = batch.pairs()
            by_hand = torch.log1p(torch.exp(-(rewards[better] - rewards[worse] - 1.5 * margin))).sum()
            assert float(loss) == pytest.approx(float(by_hand), rel=1e-6)


def test_an_adapter_without_the_right_head_is_refused(home, tmp_path):
    base = load(str(home / "model"), dtype="fp32")
    for name, methods in (("bare", graft.LoRA(r=2)), ("two", [graft.LoRA(r=2), graft.TaskHead()])):
        base.attach(name, methods)
        with pytest.raises(UsageError, match="init='unit'"):
            graft.train(base, base.adapters[name], str(home / "pairs.jsonl"), output=tmp_path, stage="reward")


def test_scores_that_only_order_the_answers_are_said(home, tmp_path):
    for stage, said in (("reward", True), (WITH_MARGIN, False)):
        settings = recipe(home, tmp_path / f"run{said}", stage, "rankings", train={"max_steps": 1})
        assert any("stage.margin=1" in note for note in graft.run(settings).notes) == said


@pytest.mark.parametrize("key", ["margin", "centring"])
def test_negative_settings_are_refused(key):
    with pytest.raises(UsageError, match=f"stage.{key}=-1"):
        stage_of(read({"stage": {"name": "reward", key: -1.0}}))


def test_scoring_a_model_without_a_head_names_the_stage(home):
    opened = open_model(str(home / "model"))
    settings = read(
        {"model": str(home / "model"), "stage": "reward", "data": {"train": str(home / "pairs.jsonl")}}
    )
    with pytest.raises(UsageError, match="stage reward"):
        score(opened, settings)


def test_it_is_planned_and_longer_rows_need_more(home, tmp_path):
    short, long = (graft.plan(recipe(home, tmp_path, data={"max_length": n})) for n in (32, 64))
    assert short.trained > 0 and long.parts["step"] > 1.5 * short.parts["step"]
