"""What a run depends on must be the same when its command is repeated; anything else may differ."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import ANIMALS, TOYS, write_model, write_rows

import graft
from graft.cli import call
from graft.data.encode import IGNORED, Example, Examples
from graft.errors import AdapterError, CheckpointError
from graft.methods.lora import LoRA
from graft.runs import identity
from graft.runs.open import open_model
from graft.runs.run import run, train
from graft.training.observer import Observer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and rows of very different lengths."""
    folder = tmp_path_factory.mktemp("identity")
    write_model(folder / "model")
    answers = [f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}. " * (1 + i * 7 % 5) for i in range(24)]
    write_rows(
        folder / "rows.jsonl",
        [{"prompt": f"Day {i}. What now? ", "completion": text} for i, text in enumerate(answers)],
    )
    return folder


def recipe(home, output, **changes):
    plain = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 96},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 1},
        "output": str(output),
    }
    for key, value in changes.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) and key in plain else value
    return plain


def test_packed_and_padded_rows_in_any_micro_batches_give_the_same_losses(home, tmp_path):
    def losses(name, pack, micro):
        steps = {"max_steps": 12, "micro_batch_size": micro, "save_every": 50}
        result = run(recipe(home, tmp_path / name, data={"pack": pack}, train=steps))
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [r[key] for key in ("loss", "eval_loss") for r in records if key in r]

    packed = losses("packed", True, 2)
    assert len(packed) > 12 and len({round(value, 3) for value in packed}) > 10
    for name, pack, micro in (("padded", False, 2), ("alone", False, 1), ("together", True, 4)):
        assert losses(name, pack, micro) == pytest.approx(packed, abs=1e-5)


class Stop(Exception):
    """Stands for a power cut."""


def stopped(settings):
    """Leave a run with a checkpoint of its first step."""

    class Saved(Observer):
        def saved(self, folder):
            raise Stop

    with pytest.raises(Stop):
        run(settings, observer=Saved())
    return settings


def copy_of(home, tmp_path):
    """Return a folder with the model and the rows, to be changed."""
    shutil.copytree(home / "model", tmp_path / "model")
    shutil.copy(home / "rows.jsonl", tmp_path / "rows.jsonl")
    return tmp_path


def change_weight(model):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def change_config(**settings):
    def change(model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **settings}))

    return change


BASES = [
    (change_weight, "files of the base"),
    (change_config(rms_norm_eps=0.1), "rms_norm_eps of the base: 1e-06 -> 0.1"),
    (
        change_config(rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}),
        r"rope_parameters\.rope_theta of the base: 10000\.0 -> 5000\.0",
    ),
]
BASE_NAMES = ["one weight", "rms_norm_eps", "rope_theta"]


@pytest.mark.parametrize(("change", "named"), BASES, ids=BASE_NAMES)
def test_a_stopped_run_is_not_continued_on_another_base(home, tmp_path, change, named):
    mine = copy_of(home, tmp_path)
    settings = stopped(recipe(mine, tmp_path / "run"))
    change(mine / "model")
    with pytest.raises(CheckpointError, match=rf"belongs to a run with a different base \(.*{named}"):
        run(settings)


@pytest.mark.parametrize(("change", "named"), BASES, ids=BASE_NAMES)
def test_a_run_is_not_opened_on_another_base(home, tmp_path, change, named):
    mine = copy_of(home, tmp_path)
    folder = run(recipe(mine, tmp_path / "run")).folder
    assert open_model(str(folder)).adapter == "run"
    change(mine / "model")
    with pytest.raises(AdapterError, match=rf"is not the base that .*run was trained on .*{named}"):
        open_model(str(folder))
    assert call(["eval", str(folder)]) == 1


def test_reading_the_whole_base_is_told_where_it_takes_long(home, tmp_path, monkeypatch):
    settings = recipe(home, tmp_path / "run", train={"max_steps": 1})
    assert not any("digest" in note for note in run(settings).notes)
    monkeypatch.setattr(identity, "NOTABLE_S", -1.0)
    again = run(settings)
    assert any(
        "model were read for their digest, which took 0.0 s: it is remembered" in n for n in again.notes
    )


def test_a_run_on_a_model_in_memory_is_told_by_its_tensors(home, tmp_path):
    def trained(change):
        base = graft.load(home / "model", dtype="fp32")
        mine = graft.Base(base.model, base.tokenizer, "mine")  # of which no file is known
        with torch.no_grad():
            mine.model.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 5] += change
        keys = recipe(home, "")
        return train(
            mine, mine.attach("x", LoRA(r=2)), keys["data"], output=tmp_path / "run", **keys["train"]
        )

    assert trained(0.0).trained and not trained(0.0).trained
    with pytest.raises(CheckpointError, match="tensors of the base"):
        trained(1e-3)


def test_an_adapter_that_is_merged_into_the_base_counts(home, tmp_path):
    def trained(merged):
        base = graft.load(home / "model", dtype="fp32")
        if merged:
            base.attach("other", LoRA(r=2))
            base.merge("other")
        keys = recipe(home, "")
        return train(
            base, base.attach("x", LoRA(r=2)), keys["data"], output=tmp_path / "run", **keys["train"]
        )

    assert trained(False).trained
    with pytest.raises(CheckpointError, match="adapters merged into the base"):
        trained(True)


CLASSES = [{"text": f"The {ANIMALS[i % 2]} {i}.", "label": ANIMALS[i % 2]} for i in range(8)]
TAGS = [{"tokens": ["The", ANIMALS[i % 2], str(i)], "tags": ["O", "ANIMAL", "O"]} for i in range(8)]
ANSWERS = [{"prompt": f"Day {i}.", "completion": "A cat."} for i in range(8)]
PAIRS = [{"prompt": f"Day {i}.", "chosen": "A cat.", "rejected": "A dog."} for i in range(8)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Day {i}."}, {"role": "assistant", "content": "A cat."}]}
    for i in range(8)
]
ROWS = [
    ("classify", CLASSES, {"label": ANIMALS[1]}, {"label": ANIMALS[0]}),
    ("classify", TAGS, {"tags": ["ANIMAL", "O", "O"]}, {"tags": ["O", "ANIMAL", "ANIMAL"]}),
    ("sft", ANSWERS, {"completion": "A dog."}, {"completion": "A hen."}),
    ("dpo", PAIRS, {"rejected": "A hen."}, {"chosen": "A hen."}),
    ("reward", PAIRS, {"chosen": "A dog.", "rejected": "A cat."}, {"rejected": "A hen."}),
]


@pytest.mark.parametrize(("stage", "given", "first", "second"), ROWS)
@pytest.mark.parametrize("ended", [False, True], ids=["stopped", "finished"])
def test_other_labels_tags_or_answers_of_the_same_texts_are_refused(
    home, tmp_path, stage, given, first, second, ended
):
    for name in ("train", "held"):
        write_rows(tmp_path / f"{name}.jsonl", given)
    data = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "held.jsonl")}
    settings = recipe(home, tmp_path / "run", stage=stage, data=data, train={"patience": 1})
    if ended:
        assert run(settings).trained and not run(settings).trained
    else:
        stopped(settings)
    for name, words in (("train", "training rows"), ("held", "held-out rows")):
        file = tmp_path / f"{name}.jsonl"
        write_rows(file, [{**given[0], **first}, {**given[1], **second}, *given[2:]])
        with pytest.raises(CheckpointError, match=f"fingerprint of the {words}"):
            run(settings)
        write_rows(file, given)
    assert run(settings).trained is not ended


def examples(**changes):
    plain = {
        "ids": [5, 6, 7],
        "labels": [IGNORED, 6, 7],
        "target": 1,
        "parts": {"written": [8, 9], "tags": [0, 1, 0], "token_types": [0, 0, 1]},
    }
    several = Examples()
    several.add(Example(**{**plain, **changes}, source="f:1"))
    several.add(Example(**plain, source="f:2"))
    return several


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [5, 6, 8], "labels": [IGNORED, 6, 8]},
        {"labels": [5, 6, 7]},
        {"target": 0},
        {"parts": {"written": [8, 7], "tags": [0, 1, 0], "token_types": [0, 0, 1]}},
        {"parts": {"written": [8, 9], "tags": [0, 0, 0], "token_types": [0, 0, 1]}},
        {"parts": {"written": [8, 9], "tags": [0, 1, 0], "token_types": [0, 1, 1]}},
        {"parts": {"written": [8, 9, 1], "tags": [0, 1], "token_types": [0, 0, 1]}},
    ],
    ids=["ids", "loss mask", "class", "decoder's answer", "tags", "token types", "ends"],
)
def test_the_fingerprint_of_rows_covers_every_part_of_an_example(change):
    assert identity._fingerprint(examples()) == identity._fingerprint(examples())
    assert identity._fingerprint(examples(**change)) != identity._fingerprint(examples())


def test_another_chat_template_is_refused_although_the_ids_are_the_same(home, tmp_path):
    text = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}A{% endif %}"
    write_rows(tmp_path / "chats.jsonl", CHATS)
    (tmp_path / "chat.jinja").write_text(text)
    data = {"train": str(tmp_path / "chats.jsonl"), "template": str(tmp_path / "chat.jinja"), "eval": None}
    settings = recipe(home, tmp_path / "run", data=data)
    assert run(settings).trained and not run(settings).trained
    (tmp_path / "chat.jinja").write_text(text.replace("%}A{%", "%}B{%"))
    with pytest.raises(CheckpointError, match="fingerprint of the t"):
        run(settings)


def test_a_finished_run_looks_at_its_rows(home, tmp_path):
    mine = copy_of(home, tmp_path)
    settings = recipe(mine, tmp_path / "run")
    assert run(settings).trained
    rows = (mine / "rows.jsonl").read_text()
    (mine / "rows.jsonl").write_text(rows.replace("Day 2.", "Day 3."))
    assert call(["train", str(tmp_path / "run")]) == 1
    with pytest.raises(CheckpointError, match=r"belongs to a run with different data \(fingerprint of the"):
        run(settings)
    (mine / "rows.jsonl").write_text(rows)
    assert not run(settings).trained


def test_what_changes_no_step_may_differ(home, tmp_path):
    """Where models and rows lie, how rows lie in memory, the budget of pages, when it is saved and logged."""
    steps = {"max_steps": 4, "optimizer": "paged_adamw"}
    calm = run(recipe(home, tmp_path / "calm", train=steps))
    mine = copy_of(home, tmp_path)
    stopped(recipe(mine, tmp_path / "run", train=steps))
    (tmp_path / "elsewhere").mkdir()
    for name in ("model", "rows.jsonl", "run"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    layout = {"micro_batch_size": 4, "paged_budget_mb": 8, "save_every": 2, "log_every": 3, "keep": 2}
    there = tmp_path / "elsewhere"
    moved = recipe(there, there / "run", data={"pack": False}, train=steps | layout)
    result = run(moved)
    assert result.trained and result.steps == 4
    name = "adapter_model.safetensors"
    ours, theirs = load_file(result.adapter / name), load_file(calm.adapter / name)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in theirs)
    assert not run(moved).trained and open_model(str(result.folder)).adapter == "run"


def test_runs_of_a_graft_before_go_on(home, tmp_path):
    """Their identities say nothing of the weights of the base, and name its folder."""
    settings = recipe(home, tmp_path / "run")
    folder = run(settings).folder
    for file in ("identity.json", "finished.json"):
        kept = json.loads((folder / file).read_text())
        assert kept.pop("sha256")
        known = kept if file == "identity.json" else kept["identity"]
        for key in [key for key in known if key.endswith("the base") and key != "fingerprint of the base"]:
            del known[key]
        known |= {"model": "elsewhere", "data.train": "there.jsonl"}
        (folder / file).write_text(json.dumps(kept))
    assert not run(settings).trained and open_model(str(folder)).adapter == "run"
