"""Rewards by name: a folder or a function, several with weights, each with its identity."""

import asyncio
import math
import threading
from types import SimpleNamespace

import pytest
import torch
from tiny_folder import write_model

import graft
from graft.errors import DataError, UsageError
from graft.models.load import load
from graft.stages.reward_adapters import read
from graft.stages.reward_calls import called
from graft.stages.rewards import Answered, combined, fingerprints, is_function, scores, weights
from models import randomise

ANSWERED = [
    Answered("P", {"answer": n}, [5, 6], [7 + n, 2], "word " * n, True, f"f:{n}") for n in range(1, 5)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a reward adapter `run/adapter` with random values, and a file of functions."""
    home = tmp_path_factory.mktemp("rewards-by-name")
    base = load(str(write_model(home / "model")), dtype="fp32")
    adapter = base.attach("r", [graft.LoRA(r=2), graft.TaskHead(num_labels=1)])
    randomise(adapter)
    adapter.save(home / "run" / "adapter")
    (home / "run" / "recipe.yaml").write_text("stage: reward\n")
    (home / "mine.py").write_text(
        "def words(completions, **columns):\n    return [len(c.split()) for c in completions]\n"
        "async def even(answer):\n    return [None if n % 2 else n for n in answer]\n"
    )
    return home


@pytest.fixture
def base(home, monkeypatch):
    monkeypatch.chdir(home)
    return load(str(home / "model"), dtype="fp32")


def test_adapters_and_functions_score_the_same_answers(base):
    done = []
    names = ["mine.py:words", "run", "mine.py:even", "run/adapter"]
    found = scores(base, names, ANSWERED, batch_size=2, progress=lambda *at: done.append(at))
    assert list(found) == names
    assert found["mine.py:words"] == [1, 2, 3, 4] and found["mine.py:even"] == [None, 2, None, 4]
    given = ([a.prompt_ids for a in ANSWERED], [a.ids for a in ANSWERED], [a.source for a in ANSWERED])
    assert found["run"] == found["run/adapter"] == read(base, "reward run", *given, batch_size=2)
    assert len(set(found["run"])) == 4
    assert done == sorted(done) and done[-1] == (16, 16)
    assert scores(base, ["run"], []) == {"run": []}


def test_a_name_with_a_colon_is_a_function_unless_there_is_such_a_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:two").mkdir()
    given = ["package.module:f", "a/b.py:f", "run:two", "runs/reward", r"C:\runs\reward", ":f"]
    assert [is_function(name) for name in given] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("runs/reward", {"runs/reward": 1.0}),
        (["a", "b:f"], {"a": 1.0, "b:f": 1.0}),
        ({"a": 2, "b:f": -0.5, "c": 0}, {"a": 2.0, "b:f": -0.5, "c": 0.0}),
    ],
)
def test_one_name_several_and_weights_are_one_setting(given, wanted):
    assert weights(given) == wanted


@pytest.mark.parametrize(
    "given",
    [None, "", [], {}, ["a", "a"], ["a", ""], [1], {"a": math.nan}, {"a": math.inf}, {"a": "2"}, {"a": True},
     {"a": 0, "b": 0.0}],
)  # fmt: skip
def test_a_setting_without_a_reward_that_counts_is_refused(given):
    with pytest.raises(UsageError, match="rewards="):
        weights(given)


def test_the_sum_is_weighted_and_leaves_out_what_does_not_apply():
    found = {"a": [1.0, None, -2.0], "b": [None, 3.0, 4.0], "only shown": [9.0, 9.0, 9.0]}
    assert combined(found, {"a": 2.0, "b": 0.5}) == [2.0, 1.5, -2.0]
    assert combined(found, {"a": 2.0, "only shown": 0.0}) == [2.0, 0.0, -4.0]
    assert combined({"a": []}, {"a": 1.0}) == []


@pytest.fixture
def loop():
    """An event loop that runs in a thread, as TRL's trainer has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("talk", [False, True])
def test_functions_are_called_and_added_up_as_trl_does(talk, loop):
    pytest.importorskip("trl")
    from trl import GRPOTrainer  # late: the import is slow
    from trl.rewards import get_repetition_penalty_reward

    seen = []

    def notes(prompts, completions, completion_ids, **columns):
        given = {key: columns[key] for key in ("answer", "level")}
        seen.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **given})
        return [n / 4 if n != 2 else None for n in columns["answer"]]

    async def lengths(completion_ids, **columns):
        return [len(ids) for ids in completion_ids]

    functions = {
        "notes": notes,
        "lengths": lengths,
        "penalty": get_repetition_penalty_reward(ngram_size=1),  # an object that is called
    }
    prompt = [{"role": "user", "content": "P"}] if talk else "P"
    answered = [
        Answered(prompt, {"answer": n, "level": "x" * n}, [5], [7] * n, f"text {n}", True, f"f:{n}")
        for n in range(1, 5)
    ]
    ours = called(functions, answered)
    texts = [one.text for one in answered]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True, num_processes=1),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        reward_funcs=[*functions.values()],
        reward_func_names=[*functions],
        reward_processing_classes=[None] * 3,
        environments=None,
        async_loop=loop,
        _log_completion_extra=None,
        _log_metric=None,
    )
    theirs = GRPOTrainer._calculate_rewards(
        trainer,
        [{"prompt": one.prompt, **one.columns} for one in answered],
        [one.prompt for one in answered],
        [[{"role": "assistant", "content": text}] for text in texts] if talk else texts,
        [list(one.ids) for one in answered],
    )
    assert seen[0] == seen[1]
    table = torch.tensor([[math.nan if v is None else v for v in ours[name]] for name in functions]).T
    assert torch.equal(theirs.nan_to_num(-9), table.nan_to_num(-9))
    wanted = (theirs * torch.tensor([1.0, 0.5, 2.0])).nansum(dim=1)  # as its loss does
    assert combined(ours, dict(zip(functions, (1.0, 0.5, 2.0), strict=True))) == pytest.approx(
        wanted.tolist()
    )


def test_an_answer_to_which_no_reward_applies_is_named():
    found = {"a": [1.0, None], "b": [None, None]}
    with pytest.raises(DataError, match="no reward applies to answer 2"):
        combined(found, {"a": 1.0, "b": 1.0})
    with pytest.raises(DataError, match="no reward applies to f:1, f:2"):
        combined(found, {"b": 1.0}, sources=["f:1", "f:2"])


def test_an_identity_changes_with_the_adapter_and_with_the_file(base, home):
    before = fingerprints(base, ["run", "mine.py:words"])
    assert before == fingerprints(base, ["run", "mine.py:words"])
    assert (
        before["run"]
        == load(str(home / "model"), dtype="fp32").load_adapter(home / "run" / "adapter", "x").fingerprint()
    )
    text = (home / "mine.py").read_text()
    (home / "mine.py").write_text(text + "# changed\n")
    randomise(base.adapters["reward run"], 5)
    after = fingerprints(base, ["run", "mine.py:words"])
    (home / "mine.py").write_text(text)
    assert all(after[name] != before[name] for name in before)


def test_a_reward_that_is_neither_is_refused(base):
    with pytest.raises(
        UsageError, match=r"the reward nowhere: there is no such folder.*package.module:function"
    ):
        scores(base, ["nowhere"], ANSWERED)
    with pytest.raises(UsageError, match=r"reward 'mine.py:word' cannot be imported.*did you mean words"):
        scores(base, ["mine.py:word"], ANSWERED)
