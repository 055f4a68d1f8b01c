"""lm-eval asks a base with an adapter, and finds what it finds with its own HFLM."""

import importlib.util
import math

import pytest

pytest.importorskip("lm_eval", reason="an extra")

import peft
import torch
from harness_tasks import documents, write_tasks
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft_oracle import tuned
from tiny_folder import write_model
from transformers import AutoModelForCausalLM

import graft
from graft.errors import AdapterError, DataError, Notice, UsageError
from graft.evaluate.harness import Benchmarks, Score, change
from graft.evaluate.harness_model import HarnessModel
from models import tiny_base

LONG = "The cat wants a ball and the dog wants a rope. " * 20
QUESTIONS = [row["question"] for row in documents(5)]
# One context with several answers, in one and more tokens, with the blank on either side; none; one too long.
PAIRS = [
    *((question, f" {choice}") for question in QUESTIONS for choice in documents(1)[0]["choices"]),
    ("Day 3. ", "What"),
    ("", "The horse wants a kite."),
    (LONG, " a ball."),
    ("Day", LONG[:300]),
    ("<bos>Day 7.", " What does"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a PEFT adapter of it, and tasks."""
    folder = tmp_path_factory.mktemp("harness")
    write_model(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tuned(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]), folder / "lora")
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def base(home):
    base = graft.load(str(home / "model"), dtype="fp32")
    base.load_adapter(home / "lora", "lora")
    return base


@pytest.fixture(scope="module", params=[None, "lora"], ids=["bare", "lora"])
def both(request, home, base):
    """Our model and lm-eval's, of the bare base and with the adapter."""
    adapter = {} if request.param is None else {"peft": str(home / request.param)}
    theirs = HFLM(str(home / "model"), device="cpu", dtype="float32", batch_size=4, **adapter)
    return HarnessModel(base, request.param, batch_size=4), theirs


def asked(kind, arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_continuations_are_as_likely_as_in_hflm(both):
    requests = asked("loglikelihood", PAIRS)
    ours, theirs = (model.loglikelihood(requests) for model in both)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_whole_texts_are_as_likely_as_in_hflm(both):
    requests = asked("loglikelihood_rolling", [(LONG,), ("The dog.",), (LONG + LONG,), ("",)])
    ours, theirs = (model.loglikelihood_rolling(requests) for model in both)
    assert ours == pytest.approx(theirs, abs=1e-3)  # sums of some 400 tokens


def test_texts_are_those_of_hflm(both):
    settings = [
        {"until": ["."], "max_gen_toks": 24},
        {"until": ["e", "a "], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 7},
    ]
    given = [(text, how) for how in settings for text in (*QUESTIONS, LONG)]
    ours, theirs = (model.generate_until(asked("generate_until", given)) for model in both)
    assert ours == theirs
    assert len(set(ours)) > 3


def test_a_prompt_is_computed_once_for_all_of_its_answers(base, monkeypatch):
    read = []
    hidden = base.hidden
    monkeypatch.setattr(base, "hidden", lambda ids, **kw: read.append(ids.shape) or hidden(ids, **kw))
    context = " ".join(QUESTIONS)
    HarnessModel(base).loglikelihood(
        asked("loglikelihood", [(context, f" {choice}") for choice in ("ball", "rope", "kite")])
    )
    assert len(read) == 1
    assert math.prod(read[0]) < 2 * len(base.tokenizer(context).input_ids)


def test_what_is_cut_off_is_said(base):
    with pytest.warns(Notice, match="1 of 1 contexts lose their beginning"):
        HarnessModel(base).loglikelihood(asked("loglikelihood", [(LONG, " a ball.")]))
    with pytest.warns(Notice, match="1 of 1 prompts lose their beginning"):
        HarnessModel(base).generate_until(asked("generate_until", [(LONG, {"max_gen_toks": 5})]))


def test_sampling_follows_the_seed(base):
    how = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 10, "until": []}
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(HarnessModel(base).generate_until(asked("generate_until", [(QUESTIONS[0], how)])))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "how, given",
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"max_gen_toks": 500}, "asks for 500 new tokens"),
        ({"typical_p": 0.5}, "typical_p"),
    ],
)
def test_settings_that_cannot_be_kept_are_errors(base, how, given):
    with pytest.raises(UsageError, match=given):
        HarnessModel(base).generate_until(asked("generate_until", [("Day", {"max_gen_toks": 4, **how})]))


def test_a_continuation_longer_than_the_model_reads_is_an_error(base):
    with pytest.raises(DataError, match="a continuation of"):
        HarnessModel(base).loglikelihood(asked("loglikelihood", [("Day", LONG)]))


def test_conversations_are_written_by_the_chat_template(base, monkeypatch):
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    monkeypatch.setattr(base.tokenizer, "chat_template", strict)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    with pytest.warns(Notice, match="takes no system message"):
        assert HarnessModel(base).apply_chat_template(turns) == "[user] Hello\n[assistant]"
    begun = [turns[1], {"role": "assistant", "content": "The cat"}]
    text = HarnessModel(base).apply_chat_template(begun, add_generation_prompt=False)
    assert text == "[user] Hello\n[assistant] The cat"


def test_the_scores_are_those_of_lm_eval(home, base):
    model = HFLM(str(home / "model"), device="cpu", dtype="float32", peft=str(home / "lora"), batch_size=4)
    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    names = ["toys_choice", "toys_perplexity", "toys_writing"]
    theirs = simple_evaluate(model, tasks=names, task_manager=manager, num_fewshot=2, bootstrap_iters=0)
    benchmarks = Benchmarks(["toys*"], include_path=[home / "tasks"], num_fewshot=2)
    ours = benchmarks.scores(base, "lora")
    assert [(one.task, one.metric) for one in ours] == [
        ("toys_choice", "acc"),
        ("toys_choice", "acc_norm"),
        ("toys_writing", "exact_match"),
        ("toys_perplexity", "word_perplexity"),
        ("toys_perplexity", "bits_per_byte"),
    ]
    for one in ours:
        assert one.value == pytest.approx(theirs["results"][one.task][f"{one.metric},none"], rel=1e-5)
        assert one.count == 12


def test_conversations_have_the_scores_of_lm_eval(home, base, monkeypatch):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
    model = HFLM(str(home / "model"), device="cpu", dtype="float32", batch_size=4)
    for tokenizer in (model.tokenizer, base.tokenizer):
        monkeypatch.setattr(tokenizer, "chat_template", template)
    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    how = {"num_fewshot": 1, "limit": 6, "bootstrap_iters": 0, "apply_chat_template": True}
    theirs = simple_evaluate(model, tasks=["toys_choice"], task_manager=manager, **how)
    benchmarks = Benchmarks(["toys_choice"], include_path=[home / "tasks"], num_fewshot=1, limit=6, chat=True)
    (acc, _), samples = benchmarks.scores(base), theirs["samples"]["toys_choice"]
    assert [int(row) for row in acc.rows] == [sample["acc"] for sample in samples]
    assert "[user]" in samples[0]["arguments"][0][0]


def test_a_second_model_is_asked_the_same(home, base):
    benchmarks = Benchmarks(["toys_choice"], include_path=[home / "tasks"], num_fewshot=2, limit=9)
    before, after, again = (benchmarks.scores(base, name) for name in (None, "lora", None))
    assert before == again != after
    acc = before[0]
    assert (acc.task, acc.metric, acc.shots, acc.higher_is_better) == ("toys_choice", "acc", 2, True)
    assert acc.count == len(acc.rows) == 9 and acc.value == sum(acc.rows) / 9
    # The standard error of a mean, by hand.
    assert acc.error == pytest.approx(math.sqrt(acc.value * (1 - acc.value) / 8))


def test_the_error_of_a_change_is_that_of_the_differences():
    # Differences 0, 1, 0, 1: their standard deviation is sqrt(1/3), of four rows.
    before = Score("t", "acc", "none", 0, 0.25, 0.25, True, 4, (0.0, 0.0, 1.0, 0.0))
    after = Score("t", "acc", "none", 0, 0.75, 0.25, True, 4, (0.0, 1.0, 1.0, 1.0))
    value, error = change(before, after)
    assert (value, error) == (0.5, pytest.approx(math.sqrt(1 / 3 / 4)))
    assert change(before, Score("t", "acc", "none", 0, 0.75, 0.25, True, 4)) == (0.5, None)


def test_tasks_that_cannot_be_had_are_errors(home, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="is not a folder"):
        Benchmarks(["toys_choice"], include_path=[tmp_path / "none"])
    (tmp_path / "others.yaml").write_text("group: others\ntask: [toys_choice]\n")
    with pytest.raises(UsageError, match=r"groups that share a task: .*toys_choice"):
        Benchmarks(["toys", "others"], include_path=[home / "tasks", tmp_path])
    text = (home / "tasks" / "toys_choice.yaml").read_text().replace("rows.jsonl", "gone.jsonl")
    (tmp_path / "lost.yaml").write_text(text.replace("toys_choice", "lost"))
    with pytest.raises(DataError, match="the task lost cannot be loaded") as error:
        Benchmarks(["lost"], include_path=[tmp_path])
    assert "include-path" in error.value.remedy
    (tmp_path / "far.yaml").write_text(text.replace("toys_choice", "far").replace(": json", ": no/rows"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the task far cannot be loaded.*no/rows"):
        Benchmarks(["far"], include_path=[tmp_path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="need the package lm-eval") as error:
        Benchmarks(["toys_choice"], include_path=[home / "tasks"])
    assert error.value.remedy == 'pip install "graftlm[harness]"'


def test_tasks_that_run_what_is_written_are_refused(home, tmp_path, base):
    text = (home / "tasks" / "toys_writing.yaml").read_text()
    (tmp_path / "code.yaml").write_text(text.replace("toys_writing", "code") + "unsafe_code: true\n")
    with pytest.raises(UsageError, match="the task code runs what the model writes"):
        Benchmarks(["code"], include_path=[tmp_path]).scores(base)


def test_models_that_do_not_fit_are_refused(home, base):
    benchmarks = Benchmarks(["toys_choice"], include_path=[home / "tasks"], limit=2, chat=True)
    with pytest.raises(UsageError, match="has no chat template"):
        benchmarks.scores(base)
    for family in ("t5", "bert"):
        with pytest.raises(UsageError, match=f"benchmarks for tiny-{family}"):
            benchmarks.scores(tiny_base(family))
    with pytest.raises(UsageError, match="has no tokenizer with an end token"):
        benchmarks.scores(tiny_base("llama"))
    with pytest.raises(AdapterError, match="adapter='lara'"):
        benchmarks.scores(base, "lara")
    base.attach("head", graft.TaskHead(num_labels=2))
    with pytest.raises(UsageError, match="answers by a task head"):
        benchmarks.scores(base, "head")
    base.detach("head")
