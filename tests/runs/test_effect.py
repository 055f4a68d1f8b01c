"""No setting of a recipe is ignored in silence: each changes the run, or is refused, or noted."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_folder import rows, write_model, write_rows

import graft
from graft.errors import GraftError
from graft.recipe import explain, read
from graft.runs.run import run

SOURCES = Path(graft.__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effect")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    labelled = [{"text": row["prompt"], "label": i % 2} for i, row in enumerate(rows())]
    write_rows(folder / "labelled.jsonl", labelled)
    write_rows(folder / "texts.jsonl", [{"text": row["prompt"] + row["completion"]} for row in rows()])
    ended = [{"text": row["prompt"] + ("<eos>" if i > 7 else "")} for i, row in enumerate(rows())]
    write_rows(folder / "controls.jsonl", ended)
    write_rows(folder / "long.jsonl", [{**row, "completion": row["completion"] * 9} for row in rows()])
    return folder


@pytest.fixture(scope="module")
def plain_runs():
    """The results of runs with the usual value, by recipe."""
    return {}


def settings(home, output, **changes):
    """A recipe of one step; changes are {dotted key: value}."""
    plain = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": None, "max_length": 64},
        "train": {"max_steps": 1, "batch_size": 4},
        "output": str(output),
    }
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        if leaf:
            plain.setdefault(section, {})[leaf] = value
        else:
            plain[key] = value
    return plain


HELD = {"data.eval": 0.25}
CLASSES = {"stage": "classify", "data.train": "LABELLED"}
# A key, a value with which it changes nothing, the rest of that recipe, and words of the given reason.
NOTED = [
    ("train.epochs", 3.0, {}, "max_steps"),
    ("train.sample_tokens", 5, {}, "no prompts"),
    ("train.sample_tokens", 5, {**CLASSES, "train.samples": ["x"]}, "classes"),
    ("train.eval_every", 5, {}, "no rows are held out"),
    ("train.dropout", True, {}, "no dropout"),
    ("train.lr", 0.5, {"method": {"name": "lora", "r": 2, "lr": 1e-3}}, "of its own"),
    ("train.weight_decay", 0.1, {"method": {"name": "ia3"}}, "decayed"),
    ("data.template", "chatml", CLASSES, "no conversations"),
    ("data.pack", False, CLASSES, "never packs"),
    ("data.control_tokens", True, CLASSES, "refuses them"),
    ("data.tag_names", ["O", "B-X"], {}, "no tags"),
    ("data.seed", 3, {}, "no limit"),
    ("evaluate.metrics", ["loss"], {}, "no rows are held out"),
    ("evaluate.limit", 3, {}, "no rows are held out"),
    ("evaluate.batch_size", 3, {}, "no rows are held out"),
    ("evaluate.max_new_tokens", 3, {}, "no rows are held out"),
    ("evaluate.max_new_tokens", 3, HELD, "generated texts"),
]
# A key, a value that cannot be meant, and the rest of that recipe.
REFUSED = [
    ("group_size", 64, {}),
    ("quant", "nf4", {"model": {"config": {"model_type": "llama"}, "tokenizer": "x"}, "stage": "pretrain"}),
    ("objective", "masked", {}),
    ("adapter", "there", {"method": {"name": "lora", "r": 3}}),
    ("train.micro_batch_size", 3, {}),
    ("train.paged_budget_mb", 64, {}),
    ("train.patience", 2, {}),
    ("data.format", "tags", {}),
    ("data.columns", {"promt": "x"}, {}),
    ("evaluate.metrics", ["accuracy"], HELD),
    ("evaluate.metrics", ["bleu"], {**HELD, **CLASSES}),
]
# A key with two values (the first the usual one) between which the files of a run differ.
CHANGES = {
    "model": (None, "OTHER"),
    "quant": ("none", "int8"),
    "dtype": ("fp32", "bf16"),
    "stage": ("sft", "pretrain", {"data.train": "TEXTS"}),
    "method": ({"name": "lora", "r": 2}, {"name": "ia3"}),
    "data.train": (None, "OTHER"),
    "data.eval": (None, 0.25),
    "data.test": (None, "ROWS"),
    "data.max_length": (64, 60, {"data.train": "LONG"}),
    "data.limit": (None, 6),
    "data.seed": (0, 1, {"data.limit": 6}),
    "data.template": (None, "plain"),
    "data.control_tokens": (False, True, {"data.train": "CONTROLS", "data.bad_rows": "skip"}),
    "train.epochs": (1.0, 2.0, {"train.max_steps": None}),
    "train.max_steps": (1, 2),
    "train.batch_size": (4, 6),
    "train.lr": (2e-4, 1e-2),
    "train.schedule": ("linear", "cosine", {"train.max_steps": 4}),
    "train.warmup": (0.03, 0.9, {"train.max_steps": 3}),
    "train.weight_decay": (0.0, 0.5, {"train.max_steps": 2, "train.lr": 0.1}),
    "train.betas": ([0.9, 0.999], [0.5, 0.6], {"train.max_steps": 3}),
    "train.eps": (1e-8, 1e-2),
    "train.clip": (1.0, 1e-6, {"train.eps": 1e-3}),
    "train.optimizer": ("adamw", "adamw_8bit", {"method": {"name": "lora", "r": 64}, "train.max_steps": 3}),
    "train.neftune_alpha": (0.0, 50.0),
    "train.seed": (0, 1),
    "train.save_every": (100, 1, {"train.max_steps": 2}),
    "train.keep": (2, 1, {"train.max_steps": 3, "train.save_every": 1}),
    "train.eval_every": (0, 1, {"train.max_steps": 2, **HELD}),
    "train.samples": ([], ["Day 1."]),
    "train.sample_tokens": (64, 2, {"train.samples": ["Day 1."]}),
    "evaluate.metrics": (["perplexity"], ["loss"], HELD),
    "evaluate.max_new_tokens": (128, 1, {"evaluate.metrics": ["chrf"], **HELD}),
    "evaluate.limit": (None, 2, HELD),
}
# These change speed, memory, or what is printed; their own tests show that they do.
MEASURED_ELSEWHERE = {
    "train.micro_batch_size", "train.gradient_checkpointing", "train.compile", "train.paged_budget_mb",
    "train.log_every", "train.on_nan", "train.patience", "train.dropout", "evaluate.batch_size", "output",
    "data.pack", "data.bad_rows", "data.format", "data.columns", "data.tag_names", "group_size", "objective",
    "adapter", "train.report_to",
}  # fmt: skip


def test_every_key_of_a_recipe_is_in_one_of_the_lists():
    assert {*CHANGES, *MEASURED_ELSEWHERE} == set(explain())


def test_every_key_is_read_somewhere():
    """A field that no file outside the recipe reads is a setting without any effect."""
    nodes = [
        node
        for path in SOURCES.rglob("*.py")
        if path.parent.name != "recipe"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    read_somewhere = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read_somewhere |= {node.value for node in nodes if isinstance(node, ast.Constant)}  # by getattr
    assert {key.rpartition(".")[2] for key in explain()} <= read_somewhere


def placed(home, value):
    """Return a value with the words that stand for files of this test."""
    files = {word: f"{word.lower()}.jsonl" for word in ("LABELLED", "ROWS", "TEXTS", "LONG", "CONTROLS")}
    return str(home / files[value]) if isinstance(value, str) and value in files else value


@pytest.mark.parametrize(("key", "value", "rest", "reason"), NOTED, ids=[f"{k}-{w}" for k, _, _, w in NOTED])
def test_a_setting_without_effect_is_noted(home, tmp_path, key, value, rest, reason):
    changes = {k: placed(home, v) for k, v in {**rest, key: value}.items()}
    notes = run(settings(home, tmp_path / "run", **changes)).notes
    (found,) = [note for note in notes if note.startswith(f"{key}=")]
    assert "has no effect here" in found and reason in found


def test_a_recipe_of_defaults_gets_no_such_note(home, tmp_path):
    notes = run(settings(home, tmp_path / "run")).notes
    assert not [note for note in notes if "no effect" in note]


@pytest.mark.parametrize(("key", "value", "rest"), REFUSED, ids=[key for key, _, _ in REFUSED])
def test_a_setting_that_cannot_be_meant_is_refused(home, tmp_path, key, value, rest):
    changes = {k: placed(home, v) for k, v in {**rest, key: value}.items()}
    if value == "there":
        changes["adapter"] = str(run(settings(home, tmp_path / "first")).adapter)
    with pytest.raises(GraftError, match=key.rpartition(".")[2]):
        run(settings(home, tmp_path / "run", **changes))


def results(home, output, changes):
    """Return everything that a run leaves but its recipe, its timing and what names the recipe's values."""
    folder = run(settings(home, output, **changes)).folder
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("recipe.yaml", "timing.jsonl", "identity.json", "finished.json", "report.html")
        and path.name not in ("manifest.json", "state.json", "adapter_config.json", "README.md")
    }
    evaluation = json.loads(files.pop("evaluation.json"))
    del evaluation["settings"]
    return {**files, "evaluation": evaluation}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_changes_what_a_run_leaves(home, tmp_path, plain_runs, key):
    usual, other, *rest = CHANGES[key]
    common = {k: placed(home, v) for k, v in (rest[0] if rest else {}).items()}
    if other == "OTHER" and key == "model":
        shutil.copytree(home / "model", tmp_path / "model")
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
        other = str(tmp_path / "model")
    elif other == "OTHER":
        other = str(write_rows(tmp_path / "other.jsonl", rows(12)))
    first = common if usual is None else {**common, key: usual}
    recipe = repr(settings(home, "", **first))
    if recipe not in plain_runs:
        plain_runs[recipe] = results(home, tmp_path / "plain" / "run", first)
    assert results(home, tmp_path / "run", {**common, key: placed(home, other)}) != plain_runs[recipe]


def test_a_recipe_that_goes_on_keeps_only_what_is_written():
    assert read({"adapter": "a"}).methods == []
    assert read({"adapter": "a", "method": {"name": "lora", "r": 4}}).methods == [{"name": "lora", "r": 4}]
    recipe = read({"adapter": "a"})
    assert read(recipe, ["train.lr=1"]).methods == []
