"""What online stages share: what is measured of answers, what they are paid, and what evaluations say."""

import json
import math

import asking
import pytest
import torch
from tiny_folder import write_rows

import graft
from graft.data import load_rows
from graft.data.encode import IGNORED, Example
from graft.data.feed import Feed
from graft.data.sampled import Sampled, SampledBatches
from graft.errors import CheckpointError, DataError, UsageError
from graft.methods.task_head import TaskHead
from graft.models.load import load
from graft.objectives.lm import token_logprobs
from graft.recipe import read
from graft.runs.build import feed as feed_of
from graft.stages.online import answered
from graft.stages.ppo import Ppo
from graft.stages.rewards import scores, weights
from graft.stages.stage import stage_of
from models import randomise, tiny_base

ROW = list(b'{"prompt": "Why?", "tools": null, "columns": {"wish": "any"}}')
PROMPTS = [[5, 6, 7], [8], [9] * 9, [5, 6, 7]]
ANSWERS = [[11, 12, 2], [13, 2], [21, 22, 23, 24, 2], [2], [31, 32], [33, 34, 35], [11, 12, 2], [40] * 7]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, prompts, rewards by functions, and two adapters of stage reward: `good` and `bad` of it."""
    home = asking.write_home(tmp_path_factory.mktemp("online"))
    base = load(str(home / "model"), dtype="fp32")
    for seed, name in enumerate(("good", "bad")):
        adapter = base.attach(name, [graft.LoRA(r=2, target_modules=["q_proj"]), TaskHead(num_labels=1)])
        randomise(adapter, seed, 0.3)
        adapter.save(home / name / "adapter")
        (home / name / "recipe.yaml").write_text("stage: reward\n")
        base.detach(name)
    return home


@pytest.fixture(scope="module")
def base(home):
    return load(str(home / "model"), dtype="fp32")


def recipe(home, output, **changes):
    return asking.recipe(home, output, {"name": "ppo", "epochs": 2} | changes.pop("stage", {}), **changes)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stage(**settings):
    return Ppo("ppo", **{"rewards": "mine.py:any", "max_new_tokens": 8} | settings)


def examples():
    return [
        Example(ids, [IGNORED] * len(ids), f"f:{i}", parts={"row": ROW}) for i, ids in enumerate(PROMPTS, 1)
    ]


def wrote():
    """Two answers of mixed lengths to each of four prompts; those without the end token 2 were cut off."""
    return Sampled(examples(), range(4), ANSWERS, [answer[-1] == 2 for answer in ANSWERS])


def feed(base, chosen, *, pack, micro=3):
    batches = chosen.batches(base, 24, pack=pack)
    return Feed(examples(), batches, batch_size=4, micro_batch_size=micro)


def alone(base, prompt, answer, temperature=1.0):
    """log p of every token of an answer, from the logits of transformers' forward over it and its prompt."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = base(ids).logits[0].double() / temperature
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logits.log_softmax(-1)[at, ids[0, len(prompt) :]]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("pack", [False, True])
def test_every_token_has_the_log_probability_of_its_answer_alone(pack, temperature):
    """Lengths are mixed, and the padding is the end token: what counts is told by lengths."""
    base = tiny_base()
    base.tokenizer = type("Tokens", (), {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1})()
    base.model.double()
    chosen = stage(temperature=temperature)
    randomise(base.attach("policy", graft.LoRA(r=2, target_modules=["q_proj", "down_proj"])), 1, 0.1)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    found = {}
    for name in ("policy", None):
        with base.using(name):
            expected = [alone(base, p, a, temperature) for p, a in zip(prompts, ANSWERS, strict=True)]
        got = chosen.of_tokens(base, name, feed(base, chosen, pack=pack), wrote(), chosen.logprobs)
        torch.testing.assert_close(got, torch.cat(expected).float(), atol=2e-6, rtol=1e-6)  # kept in float32
        found[name] = got
    assert (found["policy"] - found[None]).abs().max() > 0.01
    both = wrote()
    both.numbers["old"] = found["policy"]
    chosen.under_reference(base, "policy", feed(base, chosen, pack=pack), both)
    torch.testing.assert_close(both.numbers["reference"], found[None])
    sums = [x.sum() for x in (found["policy"] - found[None]).split([len(a) for a in ANSWERS])]
    torch.testing.assert_close(chosen.divergence(both), torch.stack(sums))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj"]),
        ("phi", ["q_proj"]),  # its head has a bias
        ("gemma2", ["q_proj"]),  # its logits are capped
        ("gemma2", ["lm_head"]),  # and an adapter at the head leaves none that is plain
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_divides_the_logits_that_transformers_computes(family, targets, dtype):
    base = tiny_base(family, **({"final_logit_softcapping": 2.0} if family == "gemma2" else {}))
    base.model.to(dtype)
    if family == "phi":
        torch.nn.init.normal_(base.model.get_output_embeddings().bias)
    randomise(base.attach("a", graft.LoRA(r=2, target_modules=targets)), 1, 0.1)
    ids = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    with base.using("a"):
        with torch.no_grad():
            logits = base(ids).logits[:, :-1].flatten(0, 1).double()
        states = base.hidden(ids)[:, :-1].flatten(0, 1).detach().requires_grad_()
        labels = ids[:, 1:].flatten()
        found, _ = token_logprobs(base, states, labels, 0.37)
        (gradient,) = torch.autograd.grad(found.sum(), states)
        written_out = (base.logits(states).double() / 0.37).log_softmax(-1)
        written_out = written_out.gather(1, labels[:, None]).sum()
        (expected,) = torch.autograd.grad(written_out, states)
    exact = (logits / 0.37).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    close = {"atol": 1e-10, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(found.double(), exact, **close)
    torch.testing.assert_close(gradient, expected, **close)
    assert (found.double() - logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]).abs().max() > 0.1


# Rewards


def functions(tmp_path, **bodies):
    """Write functions of `completions` and columns; return their names by what they are called."""
    file = tmp_path / "mine.py"
    text = "".join(f"def {name}(completions, **k):\n    return {body}\n" for name, body in bodies.items())
    file.write_text(text)
    return {name: f"{file}:{name}" for name in bodies}


def test_an_answer_is_paid_the_weighted_sum_less_what_a_missing_end_costs(base, tmp_path):
    count = "range(len(completions))"
    names = functions(tmp_path, place=f"list({count})", some=f"[None if i % 2 else 10.0 for i in {count}]")
    rewards = {names["place"]: 1.0, names["some"]: -0.5}
    sampled = wrote()
    paid = stage(rewards=rewards, missing_end=3.0).paid(base, sampled, rewards, {})
    # places 0 to 7; even ones get -5; answers 4, 5 and 7 have no end
    assert paid.tolist() == [-5.0, 1.0, -3.0, 3.0, 4 - 5 - 3.0, 5 - 3.0, 1.0, 7 - 3.0]
    assert sampled.rewards[names["place"]].tolist() == list(range(8))
    assert sampled.rewards[names["some"]].isnan().tolist() == [False, True] * 4


def test_an_answer_to_which_no_reward_applies_is_an_error_that_names_the_row(base, tmp_path):
    names = functions(tmp_path, some="[1.0] * 5 + [None] * (len(completions) - 5)")
    with pytest.raises(DataError, match="no reward applies to f:3"):
        stage().paid(base, wrote(), {names["some"]: 1.0}, {})


def test_rewards_of_models_are_normalised_by_the_first_answers_and_those_of_functions_never(
    base, home, tmp_path
):
    names = functions(tmp_path, place="[100.0 * i for i in range(len(completions))]")
    first = wrote()
    second = Sampled(examples(), range(4), [answer[::-1] for answer in ANSWERS], [True] * 8)
    chosen, good = stage(missing_end=0.0), str(home / "good")
    raw = [torch.tensor(scores(base, [good], answered(base, s))[good]).double() for s in (first, second)]
    mean = sum(raw[0].tolist()) / 8
    deviation = math.sqrt(sum((x - mean) ** 2 for x in raw[0].tolist()) / 8)
    memory = {}
    one = chosen.paid(base, first, {good: 1.0}, memory)
    two = chosen.paid(base, second, {good: 1.0}, json.loads(json.dumps(memory)))
    torch.testing.assert_close(one.double(), (raw[0] - mean) / deviation, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(two.double(), (raw[1] - mean) / deviation, atol=1e-5, rtol=1e-5)
    assert abs(one.mean()) < 1e-5 and abs(one.std(correction=0) - 1) < 1e-5
    torch.testing.assert_close(first.rewards[good].double(), raw[0])  # what is reported stays as it was
    plain = stage(missing_end=0.0, normalise=False).paid(base, first, {good: 2.0}, {})
    torch.testing.assert_close(plain.double(), 2 * raw[0], atol=1e-5, rtol=1e-5)
    paid = chosen.paid(base, first, {names["place"]: 1.0}, {})
    assert paid.tolist() == [100.0 * i for i in range(8)]


def test_a_reward_model_that_pays_everything_alike_is_no_division_by_zero(base, home, monkeypatch):
    good = str(home / "good")
    monkeypatch.setattr("graft.stages.online.scores", lambda b, names, a: {good: [2.5] * len(a)})
    assert stage(missing_end=0.0).paid(base, wrote(), {good: 1.0}, {}).tolist() == [0.0] * 8


@pytest.mark.parametrize("rewards", ["x", ["x", "y"], ("x",), {"x": 1, "y": -0.5}])
def test_rewards_are_written_in_three_ways(rewards):
    assert set(weights(stage(rewards=rewards).rewards)) <= {"x", "y"}


# Answers as the engine writes them


def prepared(base, chosen):
    """The stage and the held-out or trained prompts of a recipe."""
    made = stage_of(chosen)
    encoder = made.encoder(base.tokenizer, base.family, chosen.data)
    rows = list(encoder(load_rows(chosen.data, made.accepts()).train).examples)
    return made, feed_of(base, chosen, rows, 4, 2)


def told(made, base, prompts, sampled):
    """What an iteration reports of these answers."""
    base.attach("policy", graft.LoRA(r=2, target_modules=["q_proj"]))
    made.beside(base, "policy")
    try:
        return made.measured(base, "policy", prompts, sampled, {})
    finally:
        base.detach("policy values")
        base.detach("policy")


def test_an_answer_ends_by_itself_or_at_a_stop_text_or_is_cut_off(home, base, tmp_path):
    chosen = read(recipe(home, tmp_path, stage={"stop": ["e"], "max_new_tokens": 6}))
    made, prompts = prepared(base, chosen)
    sampled = made.write(base, None, prompts, range(12), group=3, seed=5)
    assert sampled.group == 3 and len(sampled.answers) == 36
    given = answered(base, sampled, made.stop)
    seen = set()
    for ids, ended, one in zip(sampled.answers, sampled.ended, given, strict=True):
        text = base.tokenizer.decode(ids, skip_special_tokens=True)
        by_token = ids[-1] == base.tokenizer.eos_token_id
        assert ended == (by_token or "e" in text) and 1 <= len(ids) <= 6
        assert ended or len(ids) == 6
        assert one.text == text.split("e")[0] and list(one.ids) == ids and one.ended == ended
        seen.add("token" if by_token else "text" if ended else "cut")
    assert seen >= {"text", "cut"}
    assert [one.source for one in given[::3]] == [e.source for e in prompts.examples[:12]]
    wishes = {row["prompt"]: {"wish": row["wish"]} for row in asking.prompts()}
    assert all(one.columns == wishes[one.prompt] for one in given)
    assert len({len(ids) for ids in sampled.answers}) > 1


def test_what_is_written_follows_from_the_seed_alone(home, base, tmp_path):
    made, prompts = prepared(base, read(recipe(home, tmp_path)))
    one, again, other = (
        made.write(base, None, prompts, range(6), group=2, seed=seed).answers for seed in (1, 1, 2)
    )
    assert one == again != other
    assert any(one[i] != one[i + 1] for i in range(0, 12, 2))  # answers of a group are different draws


def test_evaluations_draw_the_same_answers_and_say_what_by_hand_comes_out(home, base, tmp_path):
    settings = {"stop": ["."], "judge": f"{home}/rewards.py:letters", "rewards": {str(home / "good"): 2.0}}
    made, prompts = prepared(base, read(recipe(home, tmp_path, stage=settings | {"missing_end": 0.5})))
    policy = base.attach("policy", graft.LoRA(r=2, target_modules=["q_proj"]))
    randomise(policy, 4, 0.1)
    with base.using("policy"):
        loss, sums = made.summed(base, prompts)
        again, same = made.summed(base, prompts)
    assert loss == again and sums == same
    found = made.scores(loss, dict(sums))
    sampled = made.write(base, "policy", prompts, range(len(prompts.examples)), group=1, seed=0)
    given = answered(base, sampled, made.stop)
    (paid,) = scores(base, [str(home / "good")], given).values()
    total = [2 * reward - 0.5 * (not ended) for reward, ended in zip(paid, sampled.ended, strict=True)]
    count = len(total)
    assert found["answers"] == count == 18
    assert found["reward"] == pytest.approx(sum(total) / count, abs=1e-5) == -found["loss"]
    assert found["reward_good"] == pytest.approx(sum(paid) / count, abs=1e-5)
    assert found["ended"] == sum(sampled.ended) / count
    assert found["length"] == pytest.approx(sum(map(len, sampled.answers)) / count)
    judged = [min(one.text.count("a"), 5) / 5 for one in given]
    mean = sum(judged) / count
    assert found["judge"] == pytest.approx(mean)
    error = math.sqrt(sum((mark - mean) ** 2 for mark in judged) / count / (count - 1))
    assert found["judge_error"] == pytest.approx(error, abs=1e-9)
    with base.using("policy"):
        old = [alone(base, p.ids, a) for p, a in zip(sampled.prompts, sampled.answers, strict=True)]
    held = [alone(base, p.ids, a) for p, a in zip(sampled.prompts, sampled.answers, strict=True)]
    kl = sum(float((one - two).sum()) for one, two in zip(old, held, strict=True)) / count
    assert found["kl"] == pytest.approx(kl, abs=1e-4) != 0
    base.detach("policy")


def test_a_reward_that_applies_to_some_answers_is_reported_as_their_mean(home, base, tmp_path):
    """`short` pays the prompts that wish for it; the mean is over those, in training and in evaluations."""
    names = {f"{home}/rewards.py:short": 1.0, f"{home}/rewards.py:letters": 1.0}
    made, prompts = prepared(base, read(recipe(home, tmp_path, stage={"rewards": names})))
    loss, sums = made.summed(base, prompts)
    sampled = made.write(base, None, prompts, range(18), group=1, seed=0)
    texts = [one.text for one in answered(base, sampled) if one.columns["wish"] == "short"]
    expected = sum(-len(text) / 50 for text in texts) / len(texts)
    assert 0 < len(texts) < 18
    assert made.scores(loss, dict(sums))["reward_short"] == pytest.approx(expected)
    facts = told(made, base, prompts, sampled)
    assert facts["reward_short"] == pytest.approx(expected)


def test_a_reward_that_applies_to_no_answer_of_an_iteration_leaves_no_hole(home, tmp_path):
    """Not every iteration has a prompt that wishes for it; what is logged has to stay JSON."""
    rows = [row for row in asking.prompts() if row["wish"] != "short"]
    write_rows(tmp_path / "any.jsonl", rows)
    names = {f"{home}/rewards.py:short": 1.0, f"{home}/rewards.py:letters": 1.0}
    changes = {"stage": {"rewards": names}, "train": {"max_steps": 2}}
    chosen = recipe(home, tmp_path / "run", data={"train": str(tmp_path / "any.jsonl")}, **changes)
    result = graft.run(chosen)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "reward_letters" in text and "NaN" not in text and "reward_short" not in text
    assert "reward_short" not in result.scores["after"]


def test_rewards_whose_names_end_alike_are_told_apart(home, base, tmp_path):
    one, two = functions(tmp_path, score="[1.0] * len(completions)"), tmp_path / "other"
    two.mkdir()
    two = functions(two, score="[2.0] * len(completions)")
    names = {one["score"]: 1.0, two["score"]: 1.0}
    made, prompts = prepared(base, read(recipe(home, tmp_path, stage={"rewards": names})))
    facts = told(made, base, prompts, made.write(base, None, prompts, [0, 1], group=1, seed=0))
    assert sorted(v for k, v in facts.items() if k.startswith("reward_")) == [1.0, 2.0]


# The warning


def scored(reward, judge, error=0.1):
    return {"reward": reward, "judge": judge, "judge_error": error}


@pytest.mark.parametrize(
    ("now", "warned"),
    [
        (scored(2.0, 0.2), True),  # 0.3 below the best, and 2 · √(0.1² + 0.1²) = 0.283
        (scored(2.0, 0.22), False),  # 0.28 below: by chance
        (scored(1.0, 0.0), False),  # the reward has not risen
        (scored(2.0, 0.6), False),
        (scored(2.0, 0.2, error=0.2), False),  # 2 · √(0.1² + 0.2²) = 0.447
    ],
)
def test_it_warns_where_the_reward_rises_and_the_judge_falls(now, warned):
    earlier = [scored(0.5, 0.3), scored(1.0, 0.5)]  # compared is the one that the judge liked best
    text = stage(judge="mine.py:held").warning(earlier, now)
    assert bool(text) == warned
    if warned:
        assert "1 to 2" in text and "0.5 to 0.2" in text and "mine.py:held" in text
    assert stage().warning(earlier, now) is None  # no judge, nothing to say
    assert stage(judge="mine.py:held").warning([], now) is None


def test_a_run_whose_judge_falls_says_so(home, tmp_path):
    """The judge is the reward with its sign changed: whatever is learnt is cheating."""
    (tmp_path / "judge.py").write_text(
        "def against(completions, **k):\n    return [-min(t.count('a'), 5) / 5 for t in completions]\n"
    )
    stage = {"judge": f"{tmp_path}/judge.py:against", "epochs": 4, "prompts": 16, "beta": 0.0}
    train = {
        "max_steps": 128, "batch_size": 8, "micro_batch_size": 8, "lr": 3e-3, "schedule": "constant",
        "eval_every": 16, "save_every": 128,
    }  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", asking.prompts(64))
    data = {"train": str(tmp_path / "rows.jsonl"), "eval": 0.5}
    with pytest.warns(graft.Notice, match=r"step \d+: the reward rises .* while the judge .*against"):
        result = graft.run(recipe(home, tmp_path / "run", stage=stage, train=train, data=data))
    judged = [line["eval_judge"] for line in lines(tmp_path / "run") if "eval_judge" in line]
    assert judged[-1] < judged[0] and any("the reward rises" in note for note in result.notes)
    assert result.scores["after"]["judge"] < result.scores["before"]["judge"]


# What a run depends on


def test_a_reward_that_has_changed_refuses_to_continue(home, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text((home / "rewards.py").read_text())
    settings = recipe(home, tmp_path / "run", stage={"rewards": f"{file}:letters"}, train={"max_steps": 2})
    graft.run(settings)
    assert graft.run(settings).trained is False
    file.write_text(file.read_text().replace("/ 5", "/ 4"))
    with pytest.raises(CheckpointError, match=r"fingerprint of .*mine\.py:letters"):
        graft.run(settings)


@pytest.mark.parametrize("key", ["rewards", "judge"])
def test_a_reward_model_that_was_trained_anew_refuses_to_continue(home, tmp_path, key):
    base = load(str(home / "model"), dtype="fp32")
    place = tmp_path / "reward"

    def trained(seed):
        adapter = base.attach("r", [graft.LoRA(r=2, target_modules=["q_proj"]), TaskHead(num_labels=1)])
        randomise(adapter, seed)
        adapter.save(place / "adapter")
        base.detach("r")

    trained(1)
    (place / "recipe.yaml").write_text("stage: reward\n")
    settings = recipe(home, tmp_path / "run", stage={key: str(place)}, train={"max_steps": 2})
    graft.run(settings)
    trained(2)
    with pytest.raises(CheckpointError, match="fingerprint of"):
        graft.run(settings)


# Settings


def test_noise_is_off_and_a_template_is_not_said_to_be_without_effect(home, tmp_path):
    train = {"max_steps": 1, "neftune_alpha": 50.0, "dropout": True}
    rows = {"template": "plain", "max_length": 64}
    result = graft.run(recipe(home, tmp_path / "run", train=train, data=rows))
    (first, *_) = lines(tmp_path / "run")
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["approximate_kl"] < 1e-9
    said = [note for note in result.notes if "no effect" in note]
    assert any(note.startswith("train.neftune_alpha=50.0") for note in said)
    assert any(note.startswith("train.dropout") for note in said)
    assert not any(note.startswith("data.template") for note in said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompts", 0), ("group", 0), ("epochs", 0), ("max_new_tokens", 0), ("temperature", -1.0),
        ("temperature", math.nan), ("temperature", math.inf), ("beta", -0.1), ("beta", math.nan),
        ("missing_end", -1.0), ("kl_limit", -1.0), ("stop_kl", -1.0), ("runaway", "shout"), ("stop", [""]),
        ("rewards", {"x": 0.0}), ("rewards", {"x": math.nan}), ("rewards", ["x", "x"]), ("rewards", [""]),
        ("kl", "k4"), ("kl_target", -1.0), ("kl_horizon", 0), ("clip", 0.0), ("value_clip", 0.0),
        ("value_weight", -1.0), ("gamma", 1.1), ("gamma", -0.1), ("gae_lambda", 2.0), ("value", "head"),
        ("value_lr", -1e-3),
    ],
)  # fmt: skip
def test_a_setting_that_means_nothing_is_refused_by_its_name(key, value):
    with pytest.raises(UsageError, match=key):
        stage(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("prompts", "many"), ("normalise", "perhaps"), ("grup", 2), ("stop", "ab")]
)
def test_a_setting_of_another_kind_or_name_is_refused_when_the_recipe_is_read(home, tmp_path, key, value):
    with pytest.raises(UsageError, match=key):
        stage_of(read(recipe(home, tmp_path, stage={key: value})))


@pytest.mark.parametrize("key", ["rewards", "judge"])
@pytest.mark.parametrize(
    "name", ["no/such/folder", "no_such_module:score", "graft.data.reward_functions:none"]
)
def test_a_reward_that_is_not_there_is_an_error_before_the_first_answer(home, tmp_path, key, name):
    with pytest.raises(UsageError, match=name.split(":")[0]):
        graft.run(recipe(home, tmp_path / "run", stage={key: name}))
    assert not (tmp_path / "run" / "rollouts").exists()


def test_batches_of_a_stage_have_its_numbers_and_counts(base):
    laid = stage(group=3).batches(base, 32, pack=True)
    assert isinstance(laid, SampledBatches)
    assert (laid.answers, laid.counts, laid.longest) == (3, "tokens", 8)
    assert laid.numbers == ("old", "values", "returns", "advantages")
