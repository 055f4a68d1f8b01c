"""Preference tuning as a run: it learns, resumes, keeps its reference, whichever way rows lie in memory."""

import itertools
import json
import signal
from dataclasses import replace

import compared
import pytest
import torch
from killed_run import finish
from safetensors.torch import load_file
from tiny_folder import ANIMALS, TOYS, write_model, write_rows
from torch.testing import assert_close

import graft
from graft.data.feed import Feed
from graft.errors import UsageError
from graft.kernels import native
from graft.models.load import load
from graft.objectives.preference import answer_logprobs
from graft.recipe import read
from graft.runs.look import look
from graft.runs.open import open_model
from graft.runs.score import score
from graft.stages import reference
from graft.stages.preference import Preference
from graft.stages.stage import stage_of
from graft.training.step import measure
from models import randomise

OBJECTIVES = Preference.objectives
SILENT = lambda mask: None


def pairs(count=32):
    """Pairs in which the answer that names a toy is preferred."""
    return [
        {
            "prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want? ",
            "chosen": f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}.",
            "rejected": ("Nothing at all.", "What?", "The day wants what the day does.")[i % 3],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    write_model(folder / "model")
    write_rows(folder / "pairs.jsonl", pairs())
    said = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs()
        for side in ("chosen", "rejected")
    ]
    write_rows(folder / "judged.jsonl", said)
    write_rows(
        folder / "answers.jsonl", [{"prompt": r["prompt"], "completion": r["rejected"]} for r in pairs()]
    )
    return folder


def recipe(home, output, stage="dpo", rows="pairs", **changes):
    return compared.recipe(home, output, stage, rows, 1e-2, **changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_prefers_the_chosen_answers_in_the_end(home, tmp_path, objective):
    rows = "judged" if objective == "kto" else "pairs"
    stage = {"name": "preference", "objective": objective}
    if objective == "robust":
        stage["label_smoothing"] = 0.1
    result = graft.run(recipe(home, tmp_path / "run", stage, rows))
    before, after = result.scores["before"], result.scores["after"]
    assert after["loss"] < before["loss"] and after["margin"] > max(before["margin"], 0)
    assert after["accuracy"] > 0.8
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    kinds = ("good", "bad") if objective == "kto" else ("chosen", "rejected")
    for kind in kinds:
        assert {f"reward_{kind}", f"logp_{kind}"} <= set(steps[-1])
    assert (tmp_path / "run/reference").exists() == (objective not in ("orpo", "simpo"))
    assert score(open_model(str(tmp_path / "run")), read(tmp_path / "run")).columns["after"] == pytest.approx(
        after, rel=1e-4, abs=1e-5
    )


def test_at_the_start_the_model_is_its_reference(home, tmp_path):
    result = graft.run(recipe(home, tmp_path / "run", train={"lr": 1e-12}))
    after = result.scores["after"]
    assert after["loss"] == pytest.approx(0.6931472, abs=1e-5) and abs(after["margin"]) < 1e-5


@pytest.fixture(scope="module")
def tuned(home):
    """A run of supervised fine-tuning, whose adapter preference tuning goes on from."""
    return graft.run(recipe(home, home / "sft", "sft", "answers"))


def test_a_run_that_goes_on_from_an_adapter_has_that_adapter_as_its_reference(home, tuned, tmp_path):
    settings = recipe(home, tmp_path / "run", adapter=str(tuned.adapter), train={"lr": 1e-12, "max_steps": 1})
    del settings["method"]
    result = graft.run(settings)
    assert result.scores["after"]["loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert result.scores["before"]["loss"] != pytest.approx(0.6931472, abs=1e-2)  # the bare base is far away
    base = load(str(home / "model"), dtype="fp32")
    base.load_adapter(tuned.adapter, "sft")
    _, feed, _ = prepared(base, read(settings))
    with base.using("sft"):
        wanted = reference.log_probabilities(base, feed)
    with base.using(None):
        bare = reference.log_probabilities(base, feed)
    kept = load_file(tmp_path / "run/reference/log_probabilities.safetensors")["train"]
    assert_close(kept, torch.tensor([v for own in wanted for v in own]), rtol=1e-5, atol=1e-4)
    assert (kept - torch.tensor([v for own in bare for v in own])).abs().max() > 1


def test_training_in_memory_has_the_attached_adapter_as_its_reference(home, tmp_path):
    base = load(str(home / "model"), dtype="fp32")
    randomise(base.attach("a", graft.LoRA(r=2)), scale=0.3)
    data = {"train": str(home / "pairs.jsonl"), "eval": 0.25, "max_length": 64}
    result = graft.train(
        base, base.adapters["a"], data, output=tmp_path / "run", stage="dpo", lr=1e-12, max_steps=1
    )
    assert result.scores["after"]["loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert result.scores["before"]["loss"] != pytest.approx(0.6931472, abs=1e-2)


@pytest.mark.parametrize(("stage", "rows"), [("dpo", "pairs"), ("kto", "judged")])
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(home, tuned, tmp_path, stage, rows):
    class Stop(graft.Observer):
        def step(self, record):
            if record["step"] == 5:
                raise KeyboardInterrupt

    def settings(name):
        settings = recipe(home, tmp_path / name, stage, rows, adapter=str(tuned.adapter))
        del settings["method"]
        return settings

    calm = graft.run(settings("calm"))
    with pytest.raises(KeyboardInterrupt):
        graft.run(settings("stopped"), observer=Stop())
    kept = (tmp_path / "stopped/reference/manifest.json").read_bytes()
    resumed = graft.run(settings("stopped"))
    assert (tmp_path / "stopped/reference/manifest.json").read_bytes() == kept
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "evaluation.json"):
        assert (calm.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "rows", "kills"),
    [("dpo", "pairs", (3, 9, 9)), ("kto", "judged", (3, 17, 12)), ("reward", "pairs", (3, 9))],
    ids=["dpo", "kto", "reward"],
)
def test_a_run_killed_while_it_reads_the_reference_and_later_ends_with_the_same_bytes(
    home, tmp_path, stage, rows, kills
):
    calm, killed = (recipe(home, tmp_path / name, stage, rows) for name in ("calm", "killed"))
    assert finish(calm) == 0
    # While the reference is read, if there is one; before the first checkpoint; and after it.
    for forward in kills:
        assert finish(killed, forward) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoints").exists()
    assert finish(killed) == 0
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "evaluation.json"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_damaged_reference_is_made_again_and_said(home, tmp_path):
    settings = recipe(home, tmp_path / "run", train={"max_steps": 2})
    calm = graft.run(recipe(home, tmp_path / "calm", train={"max_steps": 2}))
    graft.run(settings)
    numbers = tmp_path / "run/reference/log_probabilities.safetensors"
    before = numbers.read_bytes()
    numbers.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    for name in ("finished.json", "evaluation.json"):
        (tmp_path / "run" / name).unlink()
    again = graft.run(settings)
    assert any("reference is made again" in note for note in again.notes)
    assert numbers.read_bytes() == before and again.scores == calm.scores


def test_texts_are_compared_with_the_best_answers_and_rows_are_shown_with_all(home, tmp_path):
    settings = recipe(home, tmp_path / "run", train={"max_steps": 1})
    settings["evaluate"] = {"metrics": ["ranked", "chrf"], "max_new_tokens": 4}
    result = graft.run(settings)
    assert set(result.scores["after"]) == {"ranked", "chrf"}
    texts = json.loads((tmp_path / "run/evaluation.json").read_text())["texts"]
    chosen = {row["prompt"]: row["chosen"] for row in pairs()}
    assert texts and all(text["references"] == [chosen[text["prompt"]]] for text in texts)
    shown = "".join(text for text, _ in look(read(settings), 1).samples[0]["pieces"])
    assert "[1] The" in shown and "[2]" in shown


def test_conversations_are_tuned_and_asked_through_the_template(home, tmp_path):
    def talk(row, side):
        asked = {"role": "user", "content": row["prompt"]}
        return [asked, {"role": "assistant", "content": row[side]}]

    rows = [{"chosen": talk(row, "chosen"), "rejected": talk(row, "rejected")} for row in pairs()]
    write_rows(home / "talks.jsonl", rows)
    settings = recipe(home, tmp_path / "run", "dpo", "talks", data={"template": "plain", "max_length": 96})
    result = graft.run(settings)
    assert result.scores["after"]["accuracy"] > 0.8
    assert json.loads((tmp_path / "run/data_report.json").read_text())["asks_by_template"]
    assert open_model(str(tmp_path / "run")).by_template


def test_good_and_bad_answers_of_unequal_weight_are_said(home, tmp_path):
    stage = {"name": "kto", "desirable_weight": 2.0}
    notes = graft.run(recipe(home, tmp_path / "run", stage, "judged", train={"max_steps": 1})).notes
    assert any("1 to 1.33 times" in note for note in notes)
    notes = graft.run(recipe(home, tmp_path / "even", "kto", "judged", train={"max_steps": 1})).notes
    assert not any("1 to 1.33 times" in note for note in notes)


# Arithmetic: layouts, micro-batches, kernels, gradients


def prepared(base, chosen):
    """Return (stage, feed of all rows with their reference, adapter) of a recipe on a loaded base."""
    stage = stage_of(chosen)
    data = graft.data.prepare(chosen.data, base.tokenizer, stage, cache=False)
    batches = stage.batches(base, chosen.data.max_length, pack=False)
    feed = Feed(data.train, batches, batch_size=len(data.train), micro_batch_size=4)
    return stage, feed, base.adapters


@pytest.fixture
def exact(home):
    """A base in double precision with a random adapter, and the start of that adapter as another one."""
    base = load(str(home / "model"), dtype="fp32")
    base.model.double()
    for name, seed in (("policy", 1), ("start", 2)):
        adapter = base.attach(name, graft.LoRA(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
        randomise(adapter, seed)
        for _, insert in adapter.inserts:
            insert.double()
    return base


def step(base, stage, feed, *, pack=False, micro=4):
    """Return (loss, metrics, gradients) of one step on all rows."""
    feed = replace(feed, batches=stage.batches(base, 64, pack=pack), micro_batch_size=micro)
    with base.using("policy"):
        batches = stage.before_step(base, feed.step(0, 0))
        measured = measure(base, base.adapters["policy"], stage.loss, batches, SILENT)
    gradients = [p.grad.clone() for p in base.adapters["policy"].parameters()]
    return measured.loss, measured.metrics, gradients


def with_reference(base, feed):
    with base.using("start"):
        return reference.with_values(feed, reference.log_probabilities(base, feed))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_same_packed_in_any_micro_batches_checkpointed_and_with_kernels_off(
    home, exact, tmp_path, objective
):
    chosen = read(recipe(home, tmp_path, objective, "judged" if objective == "kto" else "pairs"))
    stage, feed, _ = prepared(exact, chosen)
    feed = with_reference(exact, feed)
    loss, metrics, gradients = step(exact, stage, feed)
    for pack, micro, kernels, again in itertools.product(
        (True, False), (3, 64), (True, False), (False, True)
    ):
        exact.faster(kernels)
        exact.checkpointing(again)
        exact.train(True)
        other = step(exact, stage, feed, pack=pack, micro=micro)
        exact.train(False)
        # References are kept in fp32, as single numbers; everything else is in double precision.
        assert other[0] == pytest.approx(loss, rel=1e-6, abs=1e-6)
        for name, value in metrics.items():
            assert other[1][name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
        for one, two in zip(gradients, other[2], strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", ["dpo", "kto", "simpo"])
def test_the_c_kernels_give_the_step_of_torch_in_single_precision(home, tmp_path, objective):
    chosen = read(recipe(home, tmp_path, objective, "judged" if objective == "kto" else "pairs"))
    base = load(str(home / "model"), dtype="fp32")
    for name, seed in (("policy", 1), ("start", 2)):
        randomise(base.attach(name, graft.LoRA(r=2, target_modules=["q_proj", "down_proj"])), seed)
    stage, feed, _ = prepared(base, chosen)
    feed = with_reference(base, feed)
    with native.at_level("reference"):
        base.faster(False)
        loss, metrics, gradients = step(base, stage, feed)
    base.faster(True)
    for level in native.levels():
        with native.at_level(level):
            other = step(base, stage, feed, pack=True)
        assert other[0] == pytest.approx(loss, rel=1e-4)
        assert other[1]["correct"] == metrics["correct"]
        for one, two in zip(gradients, other[2], strict=True):
            assert_close(one, two, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_a_base_of_four_bits_is_tuned_and_is_its_own_reference(home, tmp_path):
    for name, lr in (("still", 1e-12), ("moved", 1e-2)):
        result = graft.run(recipe(home, tmp_path / name, quant="nf4", train={"lr": lr, "max_steps": 6}))
        loss = result.scores["after"]["loss"]
        assert (abs(loss - 0.6931472) < 1e-4) == (name == "still") and loss < 0.6932


def plain(objective, beta, better, worse):
    """The loss of one pair, written out.  better, worse: (log π, its reference, tokens)."""
    (cw, rw, nw), (cl, rl, nl) = better, worse
    sigmoid = torch.sigmoid
    if objective == "dpo":
        return -torch.log(sigmoid(beta * ((cw - rw) - (cl - rl))))
    if objective == "hinge":
        return (1 - beta * ((cw - rw) - (cl - rl))).clamp(min=0)
    if objective == "ipo":
        return ((cw - rw) / nw - (cl - rl) / nl - 1 / (2 * beta)) ** 2
    if objective == "simpo":
        return -torch.log(sigmoid(beta * (cw / nw - cl / nl) - 0.5))
    pw, pl = torch.exp(cw / nw), torch.exp(cl / nl)
    odds = torch.log(pw / (1 - pw)) - torch.log(pl / (1 - pl))
    return -cw / nw - beta * torch.log(sigmoid(odds))


@pytest.mark.parametrize("objective", ["dpo", "hinge", "ipo", "orpo", "simpo"])
def test_loss_and_gradient_are_autograds_of_the_plain_formula_on_every_answer_alone(
    home, exact, tmp_path, objective
):
    chosen = read(recipe(home, tmp_path, objective, data={"limit": 8}))
    stage, feed, _ = prepared(exact, chosen)
    feed = with_reference(exact, feed)
    loss, _, gradients = step(exact, stage, feed, pack=True)

    def alone(prompt, answer):
        logits = exact(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
        return sum(logits[len(prompt) + k - 1, token] for k, token in enumerate(answer))

    adapter = exact.adapters["policy"]
    for p in adapter.parameters():
        p.grad = None
    losses = []
    with exact.using("policy"):
        for example in feed.examples:
            ends, said = example.parts["ends"], example.parts["answers"]
            answers = [said[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
            kept = torch.tensor(example.reference).tolist()  # in fp32, as the batches have it
            told = [(alone(example.ids, a), ref, len(a)) for a, ref in zip(answers, kept, strict=True)]
            losses.append(plain(objective, 0.1, *told))
        total = torch.stack(losses).mean()
        total.backward()
    assert loss == pytest.approx(float(total), rel=1e-9)
    for one, p in zip(gradients, adapter.parameters(), strict=True):
        assert_close(one, p.grad, rtol=1e-5, atol=1e-7)  # norms compute in fp32 whatever enters them


@pytest.mark.parametrize(("objective", "rows"), [("dpo", "pairs"), ("kto", "judged")])
def test_the_supervised_term_adds_the_mean_loss_of_the_better_answers(home, exact, tmp_path, objective, rows):
    plain_, feed, _ = prepared(exact, read(recipe(home, tmp_path, objective, rows)))
    feed = with_reference(exact, feed)
    more = replace(plain_, sft_weight=0.7)
    (batch,) = replace(feed, micro_batch_size=99, batches=plain_.batches(exact, 64)).step(0, 0)
    with exact.using("policy"), torch.no_grad():
        sums, lengths = answer_logprobs(exact, batch)
        added = more.loss(exact, batch)[0] - plain_.loss(exact, batch)[0]
    better = batch.good == 1 if objective == "kto" else batch.place == 0
    assert 0 < better.sum() < len(better)
    assert float(added) == pytest.approx(float(-0.7 * (sums / lengths)[better].sum()), rel=1e-9)


def test_the_reference_point_of_kto_is_of_the_whole_step_and_reads_other_prompts_answers(
    home, exact, tmp_path
):
    stage, feed, _ = prepared(exact, read(recipe(home, tmp_path, "kto", "judged")))
    feed = with_reference(exact, feed)
    feed = replace(feed, batches=stage.batches(exact, 64), micro_batch_size=5)
    with exact.using("policy"):
        batches = stage.before_step(exact, feed.step(0, 0))
    ratios = []
    for example in feed.examples:
        start = next(k for k, label in enumerate(example.labels) if label != -100)
        prompt, other = example.ids[:start], example.parts["other"]
        with exact.using("policy"), torch.no_grad():
            logits = exact(torch.tensor([prompt + other])).logits[0].log_softmax(-1)
        total = sum(float(logits[start + k - 1, token]) for k, token in enumerate(other))
        ratios.append(total - example.reference[1])
    z0 = max(0.0, sum(ratios) / len(ratios))
    assert len({float(batch.z0) for batch in batches}) == 1
    assert float(batches[0].z0) == pytest.approx(z0, rel=1e-6, abs=1e-9)


# Settings


def test_settings_are_refused_where_they_cannot_be_meant(home, tmp_path):
    for stage, named in [
        ({"name": "preference", "beta": -1.0}, "beta"),
        ({"name": "preference", "gamma": 0.9}, "simpo"),
        ({"name": "dpo", "label_smoothing": 0.5}, "below 0.5"),
        ({"name": "orpo", "sft_weight": 1.0}, "sft_weight"),
    ]:
        with pytest.raises(UsageError, match=named):
            stage_of(read({"stage": stage}))


def test_rows_of_single_answers_are_refused_where_pairs_are_learnt(home, tmp_path):
    with pytest.raises(graft.errors.DataError, match="kto"):
        graft.run(recipe(home, tmp_path / "run", "dpo", "judged"))


def test_it_is_planned_and_longer_rows_need_more(home, tmp_path):
    for stage, rows in (("dpo", "pairs"), ("kto", "judged"), ("simpo", "pairs")):
        short, long = (
            graft.plan(recipe(home, tmp_path, stage, rows, data={"max_length": n})) for n in (32, 64)
        )
        assert short.trained > 0 and long.parts["step"] > 1.5 * short.parts["step"]
