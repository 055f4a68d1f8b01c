"""Rollouts as a source of batches: which prompts are asked when, what is kept, what a resumed run reads."""

import itertools
import json
import shutil
import warnings
from collections import Counter

import asking
import pytest
import torch
from safetensors.torch import load_file, save_file

import graft
from graft import storage
from graft.data import load_rows
from graft.errors import CheckpointError, TrainingError
from graft.models.load import load
from graft.recipe import read
from graft.runs.build import feed as feed_of
from graft.stages.ppo import Ppo
from graft.stages.stage import stage_of
from graft.training.rollouts import FILE, Rollouts
from models import randomise

FILES = ("metrics.jsonl", "adapter/adapter_model.safetensors", "values/adapter_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return asking.write_home(tmp_path_factory.mktemp("rollouts"))


@pytest.fixture(scope="module")
def base(home):
    base = load(str(home / "model"), dtype="fp32")
    randomise(base.attach("policy", graft.LoRA(r=2, target_modules=["q_proj"])), 1, 0.05)
    return base


def recipe(home, output, **changes):
    stage = {"name": "ppo", "epochs": 2} | changes.pop("stage", {})
    return asking.recipe(home, output, stage, **changes)


class Counted(Ppo):
    """PPO that counts how often it writes, and to which rows."""

    def write(self, base, adapter, feed, places, **keywords):
        asked.append(list(places))
        return super().write(base, adapter, feed, places, **keywords)


asked: list[list[int]] = []


def source(base, home, folder, identity=None, **changes):
    """Rollouts of a recipe whose training has 18 prompts, under the adapter `policy`."""
    changes = {"data": {"eval": None}} | changes
    chosen = read(recipe(home, folder, **changes))
    made = stage_of(chosen)
    made = Counted(made.objective, **{k: getattr(made, k) for k in chosen.stage_settings})
    encoder = made.encoder(base.tokenizer, base.family, chosen.data)
    examples = list(encoder(load_rows(chosen.data, made.accepts()).train).examples)
    prompts = feed_of(base, chosen, examples, chosen.train.batch_size, chosen.train.micro_batch_size)
    made.beside(base, "policy")
    asked.clear()
    return Rollouts(base, "policy", made, prompts, folder, identity or {"run": 1})


def steps(rollouts, epoch, indices):
    with rollouts.base.using("policy"):
        return [rollouts.step(epoch, index) for index in indices]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def names(batches):
    """The rows of a step's micro-batches."""
    return [source for batch in batches for source in batch.sources]


def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own(base, home, tmp_path):
    rollouts = source(base, home, tmp_path, stage={"prompts": 8, "max_new_tokens": 2})
    assert (len(rollouts.examples), rollouts.iterations, rollouts.updates) == (24, 3, 4)
    assert rollouts.steps_per_epoch == 12
    steps(rollouts, 0, [0, 4, 8])
    steps(rollouts, 1, [0, 4, 8])
    first, second = asked[:3], asked[3:]
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(24))
    assert flat(first) != flat(second) != list(range(24))
    with pytest.raises(IndexError):
        rollouts.step(0, 12)
    other = source(base, home, tmp_path / "other", stage={"prompts": 8}, train={"seed": 7})
    assert other._asked(0) != first[0]


def test_prompts_that_are_left_over_wait_for_the_next_order(base, home, tmp_path):
    """24 prompts, 10 at a time: 4 of them are not asked in an epoch, others in the next one."""
    rollouts = source(base, home, tmp_path, stage={"prompts": 10})
    assert rollouts.iterations == 2 and rollouts.steps_per_epoch == 2 * 2 * 3
    told = [rollouts._asked(number) for number in range(8)]
    assert all(len(rows) == 10 for rows in told)
    epochs = [told[i] + told[i + 1] for i in range(0, 8, 2)]
    assert all(len(set(rows)) == 20 for rows in epochs)
    assert set().union(*epochs) == set(range(24))
    more = source(base, home, tmp_path, stage={"prompts": 100})
    assert more.prompts == 24 and more.iterations == 1 and sorted(more._asked(3)) == list(range(24))


def test_a_pass_reads_every_answer_once_in_an_order_of_its_own(base, home, tmp_path):
    rollouts = source(base, home, tmp_path, stage={"prompts": 10, "epochs": 3, "group": 2})
    rows = [names(batches) for batches in steps(rollouts, 0, range(9))]
    passes = [rows[i : i + 3] for i in range(0, 9, 3)]
    assert asked == [rollouts._asked(0)]  # once, for all three passes
    every = sorted(rollouts.examples[place].source for place in asked[0])
    for parts in passes:
        assert [len(part) for part in parts] == [4, 4, 2]
        assert sorted(flat(parts)) == every
    assert len({tuple(map(frozenset, parts)) for parts in passes}) == 3
    again = [names(batches) for batches in steps(rollouts, 0, range(9))]
    assert again == rows  # a pure function of the step, once the answers are there


def test_tokens_of_a_pass_are_all_tokens_that_were_written(base, home, tmp_path):
    rollouts = source(base, home, tmp_path, stage={"prompts": 8, "group": 3})
    taken = steps(rollouts, 0, range(4))
    kept = load_file(tmp_path / "rollouts/000000" / FILE)
    written = Counter(kept["tokens"].tolist())
    for part in (taken[:2], taken[2:]):
        seen = Counter(token for step in part for batch in step for token in batch.labels.tolist())
        assert seen == written
        old = sorted(x for step in part for batch in step for x in batch.numbers["old"].tolist())
        assert old == sorted(kept["number.old"].tolist())
        assert sum(batch.tokens for step in part for batch in step) == len(kept["tokens"])


# Files


def told_by(call):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in heard]


def test_what_was_written_is_read_and_not_written_again(base, home, tmp_path):
    first = source(base, home, tmp_path)
    one = steps(first, 0, range(5))
    again = source(base, home, tmp_path)
    two = steps(again, 0, range(5))
    assert asked == []
    for a, b in zip(flat(one), flat(two), strict=True):
        assert a.sources == b.sources and torch.equal(a.inputs["input_ids"], b.inputs["input_ids"])
        assert all(torch.equal(a.numbers[name], b.numbers[name]) for name in a.numbers)
    assert again.record(4) == first.record(4) and again.record(5) == {}
    assert again.record(4)["length"] > 0


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_damaged_iteration_is_named_and_written_again(base, home, tmp_path):
    steps(source(base, home, tmp_path), 0, [0])
    place = tmp_path / "rollouts/000000"
    before = bytes_of(place)
    tensors = load_file(place / FILE)
    tensors["reward.total"] += 1
    save_file(tensors, place / FILE)
    rollouts = source(base, home, tmp_path)
    said = told_by(lambda: steps(rollouts, 0, [0]))
    assert len(said) == 1 and str(place) in said[0] and "written again" in said[0]
    assert len(asked) == 1 and bytes_of(place) == before  # the draws follow from seed and number


@pytest.mark.parametrize("damage", ["empty", "no manifest", "half"])
def test_what_a_crash_can_leave_is_written_again(base, home, tmp_path, damage):
    steps(source(base, home, tmp_path), 0, [0])
    place = tmp_path / "rollouts/000000"
    before = bytes_of(place)
    if damage == "half":
        (place / FILE).write_bytes(before[FILE][: len(before[FILE]) // 2])
    else:
        (place / storage.MANIFEST).unlink()
        if damage == "empty":
            (place / FILE).unlink()
    told_by(lambda: steps(source(base, home, tmp_path), 0, [0]))
    assert len(asked) == 1 and bytes_of(place) == before


def test_an_iteration_of_another_run_is_written_again(base, home, tmp_path):
    steps(source(base, home, tmp_path, {"run": 1, "pair": (1, 2)}), 0, [0])
    steps(source(base, home, tmp_path, {"run": 1, "pair": (1, 2)}), 0, [0])
    assert asked == []
    steps(source(base, home, tmp_path, {"run": 2, "pair": (1, 2)}), 0, [0])
    assert len(asked) == 1
    facts = storage.validate(tmp_path / "rollouts/000000")
    assert facts["identity"] == {"run": 2, "pair": [1, 2]}


def test_without_the_iteration_before_none_is_written(base, home, tmp_path):
    """What the divergence's weight and the rewards' scale had come to is lost with it."""
    steps(source(base, home, tmp_path), 0, [0, 4])
    for number in ("000000", "000001"):
        shutil.rmtree(tmp_path / "rollouts" / number)
    with pytest.raises(CheckpointError, match="iteration 0 of the answers is missing or damaged"):
        steps(source(base, home, tmp_path), 0, [4])


def test_what_an_iteration_remembers_goes_to_the_next_one_alone(base, home, tmp_path):
    rollouts = source(base, home, tmp_path, stage={"kl_target": 1e-3, "kl_horizon": 1})
    steps(rollouts, 0, [0, 4, 8])
    kept = [storage.validate(tmp_path / f"rollouts/{number:06d}") for number in range(3)]
    assert kept[0]["facts"]["beta"] == 0.05
    assert kept[1]["facts"]["beta"] == kept[0]["memory"]["beta"] != kept[1]["memory"]["beta"]
    assert kept[2]["facts"]["beta"] == kept[1]["memory"]["beta"]
    resumed = source(base, home, tmp_path, stage={"kl_target": 1e-3, "kl_horizon": 1})
    shutil.rmtree(tmp_path / "rollouts/000002")
    steps(resumed, 0, [8])
    assert storage.validate(tmp_path / "rollouts/000002") == kept[2]


@pytest.mark.parametrize(
    ("step", "left"),
    [(0, [0, 1, 2, 3]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (8, [1, 2, 3]), (11, [1, 2, 3]), (12, [2, 3])],
)
def test_iterations_that_no_checkpoint_needs_are_removed(base, home, tmp_path, step, left):
    """Four updates an iteration: step 8 is the first of iteration 2, which goes on from iteration 1."""
    rollouts = source(base, home, tmp_path)
    for number in range(4):
        (tmp_path / f"rollouts/{number:06d}").mkdir(parents=True)
    (tmp_path / "rollouts/notes").mkdir()
    rollouts.forget(step)
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        *(f"{number:06d}" for number in left),
        "notes",
    ]


# The loop


@pytest.mark.parametrize(
    ("length", "group", "size", "micro", "pack"),
    [
        (48, 1, 4, 2, True),  # each row has one prompt
        (48, 1, 4, 2, False),
        (96, 1, 8, 2, True),  # a row has several prompts
        (120, 1, 8, 8, True),
        (28, 3, 4, 4, True),  # the answers to one prompt need more than max_length
        (28, 3, 4, 4, False),
    ],
)
def test_the_largest_micro_batch_is_known_before_the_first_step(
    base, home, tmp_path, length, group, size, micro, pack
):
    rollouts = source(
        base, home, tmp_path,
        stage={"group": group, "max_new_tokens": 6, "prompts": 8},
        data={"max_length": length, "pack": pack, "eval": None},
        train={"batch_size": size, "micro_batch_size": micro},
    )  # fmt: skip
    largest = rollouts.longest()
    taken = flat(steps(rollouts, 0, range(rollouts.updates)))
    most = max(batch.inputs["input_ids"].numel() for batch in taken)
    assert most <= largest.inputs["input_ids"].numel() <= 1.4 * most
    assert largest.inputs["input_ids"].shape[1] >= max(b.inputs["input_ids"].shape[1] for b in taken)
    assert set(largest.numbers) == set(taken[0].numbers)
    assert {name: t.ndim for name, t in largest.inputs.items()} == {
        name: t.ndim for name, t in taken[0].inputs.items()
    }


def test_the_ratio_is_looked_at_before_the_first_update_only(base, home, tmp_path):
    rollouts = source(base, home, tmp_path)
    rollouts.check(0, {"ratio": 1.0005, "approximate_kl": 9.0})
    rollouts.check(1, {"ratio": 3.0})
    with pytest.raises(TrainingError, match=r"step 5: the mean ratio of probabilities is 0.9980 before"):
        rollouts.check(4, {"ratio": 0.998})


def test_steps_left_out_are_those_of_the_iteration_and_survive_a_resume(base, home, tmp_path):
    rollouts = source(base, home, tmp_path, stage={"stop_kl": 0.1})
    steps(rollouts, 0, [0])
    rollouts.check(1, {"ratio": 1.0, "approximate_kl": 0.2})
    assert steps(rollouts, 0, [2, 3]) == [[], []]
    assert "moved far enough" in rollouts.why_none
    resumed = source(base, home, tmp_path, stage={"stop_kl": 0.1})
    resumed.restore(json.loads(json.dumps(rollouts.state())))
    assert steps(resumed, 0, [2, 3]) == [[], []] and asked == []
    assert "moved far enough" in resumed.why_none
    assert steps(resumed, 0, [4])[0]


def test_a_step_without_lessons_says_so(base, home, tmp_path, monkeypatch):
    """Where a stage learns from fewer prompts than were asked, the last steps of a pass may have none."""
    rollouts = source(base, home, tmp_path, stage={"prompts": 16})
    monkeypatch.setattr(Counted, "lessons", lambda self, sampled: sampled.examples()[:5])
    taken = steps(rollouts, 0, range(4))
    assert [len(names(batches)) for batches in taken] == [2, 2, 1, 0]
    assert rollouts.why_none == "no answer is better than another"


def test_an_iteration_that_teaches_nothing_is_told_all_the_same(home, tmp_path, monkeypatch):
    monkeypatch.setattr(Ppo, "lessons", lambda self, sampled: [])
    graft.run(recipe(home, tmp_path / "run", train={"max_steps": 5}, data={"eval": None}))
    told = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["left_out"] for line in told] == ["no answer is better than another"] * 5
    assert ["reward" in line for line in told] == [True, False, False, False, True]


def finished(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def newest(folder):
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def test_a_run_goes_on_from_the_oldest_checkpoint_that_is_kept(home, tmp_path, monkeypatch):
    """The newer ones are gone, and later answers with them: what is left must be enough."""
    keys = {"max_steps": 12, "save_every": 3, "keep": 2}
    stage = {"kl_target": 0.5, "kl_horizon": 10, "max_new_tokens": 4}
    calm, broken = (
        recipe(home, tmp_path / name, stage=stage, train=keys, data={"eval": None})
        for name in ("calm", "broken")
    )
    graft.run(calm)
    kept = sorted(path.name for path in (tmp_path / "calm/rollouts").iterdir())
    assert kept == ["000001", "000002"]  # checkpoints 9 and 12; step 9 is in iteration 2

    taken, step = [0], Rollouts.step

    def dies(self, epoch, index):
        taken[0] += 1
        if taken[0] == 12:
            raise KeyboardInterrupt
        return step(self, epoch, index)

    monkeypatch.setattr(Rollouts, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        graft.run(broken)
    monkeypatch.setattr(Rollouts, "step", step)
    folder = tmp_path / "broken"
    assert newest(folder).name == "step-000009"
    shutil.rmtree(newest(folder))
    shutil.rmtree(folder / "rollouts/000002")
    assert newest(folder).name == "step-000006"  # inside of iteration 1
    graft.run(broken)
    assert finished(folder) == finished(tmp_path / "calm")


def test_answers_that_are_lost_after_steps_on_them_are_no_secret(home, tmp_path):
    """They are written again, by a policy that has moved: nobody may take the run for an undisturbed one."""
    keys = {"max_steps": 4, "save_every": 1}
    settings = recipe(home, tmp_path / "run", train=keys, data={"eval": None})
    first = graft.run(settings)
    assert not any("undisturbed" in note for note in first.notes)
    for left in ("finished.json", "evaluation.json"):
        (tmp_path / "run" / left).unlink()
    shutil.rmtree(first.adapter)
    shutil.rmtree(newest(tmp_path / "run"))  # goes on from step 3, of four on these answers
    shutil.rmtree(tmp_path / "run/rollouts/000000")
    with pytest.warns(graft.Notice, match="iteration 0 is written by a policy that has learnt from it"):
        graft.run(settings)


def test_steps_left_out_are_left_out_by_a_run_that_goes_on(home, tmp_path, monkeypatch):
    keys = {"max_steps": 8, "save_every": 1, "lr": 2e-2}
    calm, broken = (
        recipe(
            home, tmp_path / name, stage={"epochs": 4, "stop_kl": 1e-7, "max_new_tokens": 4}, train=keys,
            data={"eval": None},
        )
        for name in ("calm", "broken")
    )  # fmt: skip
    graft.run(calm)
    step = Rollouts.step

    def dies(self, epoch, index):
        if index == 4:
            raise KeyboardInterrupt
        return step(self, epoch, index)

    monkeypatch.setattr(Rollouts, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        graft.run(broken)
    monkeypatch.setattr(Rollouts, "step", step)
    graft.run(broken)
    text = (tmp_path / "calm/metrics.jsonl").read_text()
    assert text.count('"left_out": "the policy has moved far enough in this iteration"') == 6
    assert finished(tmp_path / "broken") == finished(tmp_path / "calm")
