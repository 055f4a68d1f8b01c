"""Runs: what a recipe leaves behind, that it repeats, resumes and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import ANIMALS, CONFIG, rows, write_model, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import graft
from graft.cli.chat import Conversation
from graft.errors import CheckpointError, DataError, MachineError, UsageError
from graft.recipe import read
from graft.runs.open import open_model
from graft.runs.report.page import report
from graft.runs.run import run, train
from graft.runs.score import prompts_of, score
from graft.training.observer import Observer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    write_model(home / "model")
    write_rows(home / "rows.jsonl")
    return home


def recipe(folder, output, **changes):
    steps = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 2}
    plain = {
        "model": str(folder / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, "max_length": 64},
        "train": {**steps, "samples": ["Day 1."], "sample_tokens": 4},
        "output": str(output),
    }
    for key, value in changes.items():
        plain[key] = (
            {**plain[key], **value} if isinstance(plain.get(key), dict) and isinstance(value, dict) else value
        )
    return plain


@pytest.fixture(scope="module")
def done(folder):
    heard = Heard()
    return run(recipe(folder, folder / "done"), observer=heard), heard


class Heard(Observer):
    """Writes down what it is told."""

    def __init__(self):
        self.notes, self.reports, self.steps, self.resumes = [], [], [], []

    def begin(self, facts):
        self.notes += facts.items()

    def note(self, text):
        self.notes.append(("note", text))

    def scoring(self):
        self.notes.append(("eval", ""))

    def data(self, report):
        assert not self.steps, "the data report comes before step 1"
        self.reports.append(report)

    def step(self, record):
        self.steps.append(record["step"])

    def resumed(self, step):
        self.resumes.append(step)


def test_a_run_leaves_every_file_it_promises(done):
    result, heard = done
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "recipe.yaml",
        "metrics.jsonl",
        "timing.jsonl",
        "checkpoints",
        "adapter",
        "samples.md",
        "report.html",
        "data_report.json",
    } <= names
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        p.name for p in result.adapter.iterdir()
    }
    assert (
        heard.steps == [1, 2, 3, 4]
        and heard.reports[0].train == 18
        and (dict(heard.notes)["methods"], dict(heard.notes)["sites"]) == (["lora"], 14)
    )


def test_a_resolved_recipe_repeats_the_run_bit_for_bit(done, folder):
    again = run(done[0].folder / "recipe.yaml", [f"output={folder / 'again'}"])
    for file in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (again.folder / file).read_bytes() == (done[0].folder / file).read_bytes()


def test_the_same_command_goes_on_from_the_last_checkpoint(done, folder):
    class Killed(Observer):
        def step(self, record):
            if record["step"] == 3:
                raise MemoryError("killed")  # stands for the power cut: nothing is saved after it

    target, heard = folder / "killed", Heard()
    with pytest.raises(MachineError):
        run(recipe(folder, target), observer=Killed())
    result = run(recipe(folder, target), observer=heard)
    assert heard.resumes == [2] and heard.steps == [3, 4]
    assert (result.adapter / "adapter_model.safetensors").read_bytes() == (
        done[0].adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_finished_run_is_not_run_again(done, folder):
    heard = Heard()
    again = run(recipe(folder, done[0].folder), observer=heard)
    assert again == done[0] and not heard.steps


@pytest.fixture
def ended(folder, tmp_path):
    """A finished run of classes with files of its own, and its recipe."""
    kinds = ("cat", "dog")
    labelled = [{"text": f"The {kinds[i % 2]} {i}.", "label": kinds[i % 2]} for i in range(8)]
    for name in ("train", "held", "test"):
        write_rows(tmp_path / f"{name}.jsonl", labelled)
    files = {key: str(tmp_path / f"{name}.jsonl") for key, name in (("train", "train"), ("eval", "held"))}
    settings = recipe(
        folder, tmp_path / "run", stage="classify", data={**files, "test": str(tmp_path / "test.jsonl")},
        train={"max_steps": 1, "samples": []}, evaluate={"metrics": ["accuracy"]},
    )  # fmt: skip
    return run(settings), settings, labelled


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        ("train", lambda row: {**row, "text": row["text"] + " It sat."}, "training rows"),
        ("train", lambda row: {**row, "label": {"cat": "dog", "dog": "cat"}[row["label"]]}, "training rows"),
        ("held", lambda row: {**row, "text": "A " + row["text"]}, "held-out rows"),
        ("held", lambda row: {**row, "label": "cat"}, "held-out rows"),
    ],
    ids=["texts", "labels", "held-out texts", "held-out labels"],
)
def test_a_finished_run_with_other_rows_is_refused_and_keeps_its_files(ended, tmp_path, file, edit, named):
    result, settings, labelled = ended
    kept = {path: path.read_bytes() for path in result.folder.iterdir() if path.is_file()}
    write_rows(tmp_path / f"{file}.jsonl", [edit(row) for row in labelled])
    with pytest.raises(CheckpointError, match=f"fingerprint of the {named}"):
        run(settings)
    assert kept == {path: path.read_bytes() for path in kept}


def test_a_finished_run_says_that_it_trained_nothing_and_scores_again_what_changed(ended, tmp_path):
    result, settings, labelled = ended
    heard = Heard()
    again = run(settings, observer=heard)
    assert result.trained and not again.trained and ("eval", "") not in heard.notes
    assert any("nothing is left to train" in note for note in again.notes)
    write_rows(tmp_path / "test.jsonl", labelled[:5])  # not trained on: it may change
    assert run(settings).coverage["of"] == 5
    with_f1 = run({**settings, "evaluate": {"metrics": ["accuracy", "f1"]}})
    assert set(with_f1.scores["after"]) == {"accuracy", "f1"} and not with_f1.trained


def test_a_finished_run_of_another_model_or_stage_is_refused(ended, folder, tmp_path):
    _, settings, _ = ended
    with pytest.raises(CheckpointError, match="stage"):
        run({**settings, "stage": "pretrain", "evaluate": {"metrics": ["perplexity"]}})
    moved = tmp_path / "model"
    shutil.copytree(folder / "model", moved)
    mine = {**settings, "model": str(moved), "output": str(tmp_path / "mine")}
    run(mine)
    tensors = load_file(moved / "model.safetensors")
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="fingerprint of the base"):
        run(mine)


def test_one_step_moves_the_adapter(folder):
    result = run(recipe(folder, folder / "one", train={"max_steps": 1}))
    states = load_file(result.adapter / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for key, tensor in states.items() if "lora_B" in key)
    line = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["lr"] == pytest.approx(1e-2)


def test_notices_reach_the_observer_and_the_result_or_python(folder):
    settings = recipe(folder, folder / "notes", data={"max_length": 1024}, train={"max_steps": 1})
    heard = Heard()
    result = run(settings, observer=heard)
    said = "data.max_length is 128 here, not 1024: the model has 128 positions"
    assert said in result.notes and ("note", said) in heard.notes
    assert json.loads(json.dumps(result.facts()))["notes"] == result.notes
    assert heard.reports[0].max_length == 128
    with pytest.warns(graft.Notice, match="128 positions"):
        run(settings | {"output": str(folder / "python")})


@pytest.mark.parametrize(
    ("prompt", "words"), [("The cat wants a ball. " * 60, "prompt too long"), ("A cat <pad>", "")]
)
def test_a_sample_that_the_model_cannot_be_asked_is_refused_before_training(folder, prompt, words):
    settings = recipe(folder, folder / "asked", train={"samples": ["Day 1.", prompt], "max_steps": 1})
    if not words:
        assert run(settings).trained
        return
    heard = Heard()
    with pytest.raises(UsageError, match=rf"train\.samples has the prompt 'The cat.*{words}"):
        run(settings, observer=heard)
    assert not heard.steps


def test_the_folder_and_its_page_keep_the_notes(folder):
    result = run(recipe(folder, folder / "kept", data={"max_length": 500}, train={"max_steps": 1}))
    assert json.loads((result.folder / "notes.json").read_text()) == result.notes
    assert "data.max_length is 128 here, not 500" in (result.folder / "report.html").read_text()


def test_another_recipe_is_refused_in_a_used_folder(done, folder):
    before = (done[0].folder / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"train\.lr"):
        run(recipe(folder, done[0].folder, train={"lr": 1e-3}))
    assert (done[0].folder / "recipe.yaml").read_bytes() == before


def test_settings_that_change_no_step_may_change_in_a_used_folder(done, folder):
    assert run(recipe(folder, done[0].folder, train={"micro_batch_size": 4, "log_every": 3})) == done[0]


def test_scores_are_those_of_the_saved_adapter(done):
    opened = open_model(str(done[0].folder))
    table = score(opened, opened.recipe)
    assert table.columns["after"]["perplexity"] == pytest.approx(
        done[0].scores["after"]["perplexity"], rel=1e-5
    )
    assert done[0].scores["after"]["perplexity"] < done[0].scores["before"]["perplexity"]


def test_a_moved_run_opens_where_it_lies_now(done, folder):
    moved = folder / "moved"
    shutil.copytree(done[0].folder, moved)
    assert open_model(str(moved)).folder == moved


def test_an_adapter_folder_opens_with_its_base(done):
    opened = open_model(str(done[0].adapter))
    assert opened.adapter == "done" and opened.ask(["Day 1."], max_new_tokens=2)


def test_training_goes_on_from_a_saved_adapter(done, folder):
    result = run(
        recipe(folder, folder / "further", adapter=str(done[0].adapter), train={"max_steps": 1, "lr": 1e-9})
    )
    before, after = (load_file(at / "adapter_model.safetensors") for at in (done[0].adapter, result.adapter))
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_going_on_with_the_method_written_as_it_is_resumes_and_with_another_is_refused(done, folder):
    settings = recipe(folder, folder / "on", adapter=str(done[0].adapter), train={"max_steps": 1})
    without = {key: value for key, value in settings.items() if key != "method"}
    assert run(without).trained and not run(without).trained and not run(settings).trained
    assert read(folder / "on").method["r"] == 2
    named_anew = settings | {"method": {"name": "lora", "r": 2, "target_modules": "all-linear"}}
    assert not run(named_anew).trained  # the file has the names that this word meant
    for method, named in (
        ({"name": "lora", "r": 4}, r"method\.r=4 \(it has 2\)"),
        ({"name": "lora", "target_modules": ["q_proj"]}, r"method\.target_modules"),
        ("ia3", r"method\.name=ia3 \(it is lora\)"),
    ):
        with pytest.raises(UsageError, match=named):
            run(settings | {"method": method, "output": str(folder / "other")})
        with pytest.raises(UsageError, match=named):
            graft.plan(settings | {"method": method})
    assert graft.plan(without).trained == graft.plan(settings | {"adapter": None}).trained


def test_a_run_from_an_adapter_that_has_changed_is_refused_and_one_that_has_moved_is_not(done, folder):
    start = folder / "start"
    shutil.copytree(done[0].adapter, start)
    mine = recipe(folder, folder / "from-start", adapter=str(start), train={"max_steps": 1})
    assert run(mine).trained
    start.rename(folder / "moved-start")
    assert not run(mine | {"adapter": str(folder / "moved-start")}).trained
    file = folder / "moved-start" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    (folder / "moved-start" / "manifest.json").unlink()  # it is an adapter of somebody else now
    before = (folder / "from-start" / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="fingerprint of adapter: "):
        run(mine | {"adapter": str(folder / "moved-start")})
    assert (folder / "from-start" / "recipe.yaml").read_bytes() == before


def test_training_an_attached_adapter_is_the_same_run(done, folder):
    base = graft.load(folder / "model", dtype="fp32")
    torch.manual_seed(0)
    adapter = base.attach("done", graft.LoRA(r=2))
    keys = recipe(folder, "")["train"]
    result = train(base, adapter, data={**recipe(folder, "")["data"]}, output=str(folder / "api"), **keys)
    assert (result.adapter / "adapter_model.safetensors").read_bytes() == (
        done[0].adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert base.adapters["done"] is adapter


def test_a_misspelt_training_keyword_names_the_nearest(folder):
    base = graft.load(folder / "model")
    with pytest.raises(UsageError, match="did you mean epochs"):
        train(base, base.attach("x", graft.LoRA(r=2)), data=folder / "rows.jsonl", epoch=2)


def test_a_fresh_model_becomes_an_ordinary_folder(folder):
    texts = write_rows(
        folder / "texts.jsonl", [{"text": row["prompt"] + row["completion"]} for row in rows()]
    )
    config = {**CONFIG, "num_hidden_layers": 1, "max_position_embeddings": 64}
    made = {"config": config, "tokenizer": {"train": "bpe", "vocab_size": 290}}
    changes = {
        "model": made,
        "stage": "pretrain",
        "method": "full",
        "data": {"train": str(texts)},
        "train": {"samples": []},
    }
    result = run(recipe(folder, folder / "fresh", **changes))
    plain = AutoModelForCausalLM.from_pretrained(result.model, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(result.model, trust_remote_code=False)
    ids = torch.tensor([tokenizer("Day 1. What")["input_ids"]])
    opened = open_model(str(result.folder))
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits.float(), opened.base(ids).logits.float(), atol=1e-5)


def test_classes_come_from_the_rows(folder):
    labelled = write_rows(
        folder / "labels.jsonl",
        [{"text": row["completion"], "label": row["completion"].split()[1]} for row in rows()],
    )
    changes = {
        "stage": "classify",
        "data": {"train": str(labelled)},
        "train": {"samples": []},
        "evaluate": {"metrics": ["accuracy"]},
    }
    result = run(recipe(folder, folder / "classes", **changes))
    assert set(result.scores) == {"majority", "after"}
    opened = open_model(str(result.folder))
    assert opened.base.adapters["classes"].methods[-1].labels == ("bird", "cat", "dog", "horse")
    assert score(opened, opened.recipe).columns["after"] == pytest.approx(result.scores["after"])


def test_tags_of_words_come_from_a_conll_file_and_are_told_in_brackets(folder):
    sentences = [
        [(word, "B-PET" if word in ANIMALS else "O") for word in row["completion"].split()] for row in rows()
    ]
    lines = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences]
    (folder / "pets.txt").write_text("\n".join(lines))
    changes = {
        "stage": "classify",
        "data": {"train": str(folder / "pets.txt")},
        "train": {"max_steps": 20, "lr": 3e-2, "samples": ["The horse wants a kite."]},
    }
    result = run(recipe(folder, folder / "pets", **changes))
    before, after = result.scores["majority"], result.scores["after"]
    assert before == {"accuracy": 0.8, "precision": 0, "recall": 0, "f1": 0}  # one of five words is a pet
    assert set(after) == set(before) and after["f1"] > 0.9
    opened = open_model(str(result.folder))
    head = opened.base.adapters["pets"].head
    assert (head.labels, head.pool) == (("B-PET", "O"), "none")
    assert score(opened, opened.recipe).columns["after"] == pytest.approx(after)
    assert opened.ask(["The horse wants a kite."]) == ["The [PET horse] wants a kite ."]
    spoken = Conversation(opened.base, "pets", {}, raw=True)
    assert spoken.ask("The cat wants a ball.") == "The [PET cat] wants a ball ."
    assert "The [PET horse] wants a kite ." in (result.folder / "samples.md").read_text()
    shown = json.loads((result.folder / "evaluation.json").read_text())["texts"]
    assert len(shown) == 6 and all("[PET " in text["references"][0] for text in shown)
    assert prompts_of(opened, 2) == ["The horse wants a kite."]


def test_a_head_takes_the_names_of_the_rows_classes_and_is_refused_where_it_does_not_fit(folder):
    tagged = write_rows(folder / "tagged.jsonl", [{"tokens": ["a", "cat"], "tags": ["O", "B-PET"]}] * 8)
    data = {"train": str(tagged), "eval": None}
    nameless = graft.load(folder / "model", dtype="fp32")
    adapter = nameless.attach("x", graft.TaskHead(num_labels=2, pool="none"))
    train(nameless, adapter, data, stage="classify", output=str(folder / "nameless"), max_steps=1)
    assert adapter.head.labels == ("B-PET", "O")
    unfit = {"pool='none'": graft.TaskHead(pool="mean"), "3 without names": graft.TaskHead(num_labels=3)}
    for word, method in unfit.items():
        base = graft.load(folder / "model", dtype="fp32")
        with pytest.raises(UsageError, match=word):
            train(
                base,
                base.attach("x", method),
                data,
                stage="classify",
                output=str(folder / "unfit"),
                max_steps=1,
            )


def test_conversations_are_asked_through_the_template_they_were_trained_with(folder):
    turns = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]
        for r in rows()
    ]
    chats = write_rows(folder / "chats.jsonl", [{"messages": pair} for pair in turns])
    result = run(recipe(folder, folder / "chats", data={"train": str(chats)}, train={"max_steps": 1}))
    opened = open_model(str(result.folder))
    assert opened.by_template and "Assistant:" in opened.base.tokenizer.chat_template


def test_a_defective_row_is_named_before_anything_is_trained(folder):
    bad = write_rows(folder / "bad.jsonl", [*rows(), {"prompt": "x", "completion": ""}])
    with pytest.raises(DataError, match=r"bad\.jsonl:25"):
        run(recipe(folder, folder / "bad", data={"train": str(bad)}))
    result = run(
        recipe(
            folder, folder / "skipped", data={"train": str(bad), "bad_rows": "skip"}, train={"max_steps": 1}
        )
    )
    assert json.loads((result.folder / "rejected.jsonl").read_text())["source"].endswith(":25")


def test_an_objective_that_a_model_cannot_learn_by_is_refused(folder):
    with pytest.raises(UsageError, match="span"):
        run(recipe(folder, folder / "span", stage="pretrain", objective="span"))


def test_the_report_works_without_a_network_and_escapes_texts(done, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(done[0].folder, copy)
    (copy / "samples.md").write_text("</script><script>alert(1)</script>")
    page = report(copy)
    assert "<canvas" not in page and page.count("<script") == 3, "the numbers, uPlot, and ours"
    assert "alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src &#x27;none&#x27;" in page.split("</head>")[0], "the browser connects to nobody"
    assert not [
        tag for tag in ("<link", "src=", "@import") if tag in page.split("<main>")[1].split("<script")[0]
    ]


def test_a_report_of_an_empty_folder_is_a_page(tmp_path):
    assert report(Path(tmp_path)).startswith("<!doctype html>")
