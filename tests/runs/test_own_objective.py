"""Functions of the user's own: minimised, tried before the first step, and the same at every start."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_folder import rows, write_model, write_rows
from torch.nn import functional as F

import graft
from graft.errors import CheckpointError, UsageError
from graft.objectives.lm import language_modelling, supervised
from graft.recipe import read
from graft.runs.own_objective import name_of
from graft.runs.run import run, train
from graft.stages.stage import stage_of

STEPS = {"max_steps": 3, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 2}
WEIGHTS = "adapter/adapter_model.safetensors"
USUAL = "from graft.objectives.lm import language_modelling as usual\n"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_objective.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


def recipe(home, output, objective=None, **changes):
    return {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "max_length": 64, "eval": 0.25},
        "train": STEPS,
        "output": str(output),
        **({} if objective is None else {"objective": str(objective)}),
        **changes,
    }


def own_file(folder, text):
    path = folder / "losses.py"
    path.write_text(text)
    return path


def weights(result):
    return (result.folder / WEIGHTS).read_bytes()


def example():
    spec = importlib.util.spec_from_file_location("own_objective_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Count:
    """A loss as an object; it counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, base, batch):
        self.calls += 1
        return language_modelling(base, batch)


@pytest.fixture(scope="module")
def usual(home):
    return run(recipe(home, home / "usual"))


def test_the_stages_own_loss_as_a_function_gives_the_same_adapter(home, usual, tmp_path):
    path = own_file(tmp_path, USUAL)
    by_path = run(recipe(home, tmp_path / "path", f"{path}:usual"))
    assert weights(by_path) == weights(usual)
    counted = Count()
    base = graft.load(home / "model", dtype="fp32")
    data = {"train": home / "rows.jsonl", "max_length": 64, "eval": 0.25}
    given = train(
        base,
        base.attach("usual", graft.LoRA(r=2)),
        data,
        objective=counted,
        output=tmp_path / "given",
        **STEPS,
    )
    plain = graft.load(home / "model", dtype="fp32")
    expected = train(plain, plain.attach("usual", graft.LoRA(r=2)), data, output=tmp_path / "plain", **STEPS)
    assert weights(given) == weights(expected) and counted.calls > 3 * 2


def test_another_loss_gives_another_adapter_and_comparable_scores(home, usual, tmp_path):
    path = own_file(
        tmp_path, USUAL + "def half(base, batch):\n    a, b = usual(base, batch)\n    return a / 2, b"
    )
    half = run(recipe(home, tmp_path / "run", f"{path}:half"))
    assert weights(half) != weights(usual)
    first, before = (one.scores["before"]["perplexity"] for one in (half, usual))
    assert first == before  # the stage scores, whatever is minimised


@pytest.mark.parametrize(("name", "gamma"), [("smoothed", None), ("focal", 2.0)])
def test_the_example_computes_what_torch_does(name, gamma, home):
    base = graft.load(home / "model", dtype="fp32")
    ids = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = -100
    batch = type("Batch", (), {"inputs": {"input_ids": ids}, "labels": labels, "supervised": None})
    loss, metrics = getattr(example(), name)(base, batch)
    logits, wanted = base.model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if gamma is None:
        expected = F.cross_entropy(logits, wanted, ignore_index=-100, label_smoothing=0.1, reduction="sum")
    else:
        p = logits.softmax(-1).gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        expected = (-((1 - p) ** gamma) * p.log())[wanted != -100].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["tokens"] == 14 == len(supervised(base, batch)[1])


WRONG = {
    "return usual(base, batch)[0]": r"returned a tensor of shape \(\)",
    "return 1.0, {'tokens': batch.tokens}": r"returned a float: 1.0 as its loss",
    "return usual(base, batch)[0].expand(3), {}": r"returned a tensor of shape \(3,\) as its loss",
    "return usual(base, batch)[0], {}": r'without "tokens"',
    "return usual(base, batch)[0], {'tokens': 1}": r'returned "tokens" 1 where the batch has \d+',
    "return usual(base, batch)[0] * float('nan'), {'tokens': batch.tokens}": r"gave the loss nan for .*:\d",
    "return usual(base, batch)[0].detach(), {'tokens': batch.tokens}": r"no gradient reaches the adapter",
    "return base.nonsense": r"failed with AttributeError at .*losses.py:3",
}


@pytest.mark.parametrize(("body", "named"), WRONG.items())
def test_a_wrong_function_is_named_before_the_first_step(body, named, home, tmp_path):
    path = own_file(tmp_path, f"{USUAL}def mine(base, batch):\n    {body}\n")
    with pytest.raises(UsageError, match=named):
        run(recipe(home, tmp_path / "run", f"{path}:mine"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_function_of_other_arguments_is_named(home, tmp_path):
    path = own_file(tmp_path, "def mine(logits, labels, weight):\n    return logits\n")
    with pytest.raises(UsageError, match=r"takes \(logits, labels, weight\)"):
        run(recipe(home, tmp_path / "run", f"{path}:mine"))


def test_a_mean_in_place_of_a_sum_is_told(home, tmp_path):
    text = (
        "def mean(base, batch):\n    loss, told = usual(base, batch)\n    return loss / batch.tokens, told\n"
    )
    path = own_file(tmp_path, USUAL + text)
    result = run(recipe(home, tmp_path / "run", f"{path}:mean"))
    assert any("if that is a mean, return the sum instead" in note for note in result.notes)
    own = run(recipe(home, tmp_path / "sum", f"{path}:usual"))
    assert not any("mean" in note for note in own.notes)


def test_a_changed_function_does_not_continue_a_run(home, tmp_path):
    path = own_file(tmp_path, USUAL + "def mine(base, batch):\n    return usual(base, batch)\n")
    run(recipe(home, tmp_path / "run", f"{path}:mine"))
    assert run(tmp_path / "run").trained is False  # its own folder names the function
    path.write_text(path.read_text() + "# another word\n")
    with pytest.raises(CheckpointError, match="fingerprint of the objective"):
        run(recipe(home, tmp_path / "run", f"{path}:mine"))


def test_a_function_without_a_path_is_asked_for_again(home, tmp_path):
    def inside(scale):
        def mine(base, batch):
            loss, told = language_modelling(base, batch)
            return loss * scale, told

        return mine

    def trained(objective):
        base = graft.load(home / "model", dtype="fp32")
        adapter = base.attach("x", graft.LoRA(r=2))
        data = {"train": rows(), "max_length": 64}
        return train(base, adapter, data, objective=objective, output=tmp_path / "run", **STEPS)

    assert trained(inside(1.0)).trained and not trained(inside(1.0)).trained
    assert read(tmp_path / "run").objective.startswith("given:")
    with pytest.raises(UsageError, match=r"was given in Python.*graft\.train"):
        run(tmp_path / "run")
    with pytest.raises(CheckpointError):
        trained(lambda base, batch: language_modelling(base, batch))


def test_names_are_paths_where_there_is_one():
    assert name_of(language_modelling) == "graft.objectives.lm:language_modelling"
    assert name_of(lambda base, batch: None).startswith("given:")
    assert name_of(Count()) == "given:Count"


@pytest.mark.parametrize("objective", ["losses.py:mine", "masked"])
def test_a_function_stands_beside_the_objective_of_its_stage(objective):
    asked = {"stage": {"name": "pretrain", "objective": "masked"}, "objective": objective}
    chosen = read(asked)
    assert stage_of(chosen).objective == "masked" and chosen.objective == objective
    again = read({"stage": chosen.stage, "objective": chosen.objective})
    assert again == chosen
    word = read({"stage": "masked", "objective": objective})
    assert (word.stage, word.objective) == (chosen.stage, chosen.objective)


@pytest.mark.parametrize("stage", ["dpo", "grpo", "reward"])
def test_stages_that_compare_answers_take_no_function(stage):
    with pytest.raises(UsageError, match="functions are for classify, pretrain, sft"):
        read({"stage": stage, "objective": "losses.py:mine"})


def test_classes_and_texts_take_one_too(home, tmp_path):
    text = "from graft.objectives.classify import classification as classes\n"
    path = own_file(tmp_path, USUAL + text)
    labelled = [{"text": f"the {i}", "label": "ab"[i % 2]} for i in range(12)]
    for stage, given, name in (
        ("classify", labelled, "classes"),
        ("pretrain", [f"the cat {i} sat" for i in range(12)], "usual"),
    ):
        data = {"train": given, "max_length": 64, "eval": None}
        results = [
            run(recipe(home, tmp_path / f"{stage}{own}", own, stage=stage, data=data))
            for own in (None, f"{path}:{name}")
        ]
        assert weights(results[0]) == weights(results[1])
