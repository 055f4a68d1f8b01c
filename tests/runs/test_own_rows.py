"""Exports of a run are measured with its own rows, say so, and `graft verify` reads the same rows again."""

import json
import math
import stat

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_folder import write_model, write_rows
from torch.nn import functional as F

from graft.cli import call
from graft.errors import Notice
from graft.runs.open import open_model
from graft.runs.origin import origin_of
from graft.runs.own_rows import ROWS, own_rows
from graft.runs.run import run
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.fidelity import answers, perplexity


def trained(home, name, **changes):
    """The folder of a run of two steps on the rows beside the model."""
    settings = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25},
        "train": {"max_steps": 2, "batch_size": 4, "lr": 1e-2},
        "output": str(home / name),
    }
    return run({**settings, **changes}).folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    classes = [{"text": f"The {name} ran {i}.", "label": name} for name in ("cat", "dog") for i in range(12)]
    write_rows(folder / "classes.jsonl", classes)
    trained(folder, "run")
    trained(folder, "classes", stage="classify", data={"train": str(folder / "classes.jsonl"), "eval": 0.25})
    return folder


def exported(home, name, out, *words):
    assert call(["export", str(home / name), str(out), "--lossy", *words]) == 0
    return json.loads((out / CERTIFICATE).read_text())


def test_the_perplexity_is_that_of_the_held_out_answers(home):
    opened = open_model(str(home / "run"))
    prompts = own_rows(opened.recipe, opened.base, opened.adapter)
    assert len(prompts.rows) == 6 and prompts.source == {"kind": "held-out", "of": 6, "seed": 0}
    found = perplexity(opened.base, prompts, answers(opened.base, opened.adapter, prompts))
    loss, count = 0.0, 0
    texts = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    tokenizer = opened.base.tokenizer
    by_prompt = {tuple(tokenizer(row["prompt"])["input_ids"]): row for row in texts}
    for prompt in prompts.rows:
        asked = prompt.ids[: prompt.at[0] + 1]
        assert tuple(asked) in by_prompt  # only the answer is measured
        with torch.no_grad():
            logits = opened.base(torch.tensor([prompt.ids]), adapters=[opened.adapter])[0][
                0, len(asked) - 1 : -1
            ]
        loss += float(
            F.cross_entropy(logits.float(), torch.tensor(prompt.ids[len(asked) :]), reduction="sum")
        )
        count += len(prompt.ids) - len(asked)
    assert found == pytest.approx(math.exp(loss / count), rel=1e-5)


def test_an_export_speaks_of_the_runs_rows_and_is_verified_on_them(home, tmp_path, capsys):
    facts = exported(home, "run", tmp_path / "out")
    told = capsys.readouterr().err
    assert "on 6 of the run's 6 held-out rows" in told and "survives rounding" in told
    assert facts["prompts"]["run"] == "run" and facts["prompts"]["kind"] == "held-out"
    assert str(home) not in (tmp_path / "out" / CERTIFICATE).read_text()
    assert call(["verify", str(tmp_path / "out"), "--base", str(home / "model")]) == 0


def test_rows_that_changed_or_went_are_told_by_verify(home, tmp_path, capsys):
    out = home / "out"
    exported(home, "run", out)
    rows = home / "rows.jsonl"
    kept = rows.read_text()
    assert call(["verify", str(out)]) == 0 and "not checked" not in capsys.readouterr().out
    try:
        rows.write_text(kept.replace("wants a", "has a"))
        assert call(["verify", str(out)]) == 1
        assert "the rows of the run, have changed" in capsys.readouterr().out
        rows.unlink()
        assert call(["verify", str(out)]) == 0
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
        assert "not checked" in lines["prompts"] and "same" in lines["weights"] and "logits" not in lines
    finally:
        rows.write_text(kept)


def test_a_model_that_is_no_run_is_measured_with_fixed_texts(home, tmp_path, capsys):
    assert call(["export", str(home / "model"), str(tmp_path / "out")]) == 0
    assert "fixed texts unlike your data" in capsys.readouterr().err
    assert "run" not in json.loads((tmp_path / "out" / CERTIFICATE).read_text())["prompts"]


def test_merge_measures_its_ways_on_the_runs_rows(home, tmp_path, capsys):
    trained(home, "packed", quant="nf4")
    assert call(["merge", str(home / "packed"), str(tmp_path / "out"), "--lossy"]) == 0
    told = capsys.readouterr().err
    assert told.count("6 of the run's 6 held-out rows") == 2 and "fixed texts" not in told


def test_training_rows_stand_in_where_none_are_held_out(home):
    folder = trained(home, "all", data={"train": str(home / "rows.jsonl"), "eval": None})
    opened = open_model(str(folder))
    prompts = own_rows(opened.recipe, opened.base, opened.adapter)
    assert len(prompts.rows) == ROWS and prompts.source == {"kind": "training", "of": 24, "seed": 0}
    assert prompts.digest() == own_rows(opened.recipe, opened.base, opened.adapter).digest()


def test_a_run_whose_rows_are_gone_is_exported_with_a_notice(home):
    opened = open_model(str(home / "run"))
    data = opened.recipe.data.model_copy(update={"train": str(home / "gone.jsonl")})
    opened.recipe = opened.recipe.model_copy(update={"data": data})
    with pytest.warns(Notice, match="8 fixed texts are measured instead"):
        assert origin_of(opened).prompts is None


def test_a_classifiers_certificate_counts_its_classes(home, tmp_path, capsys):
    facts = exported(home, "classes", tmp_path / "out")
    assert facts["classes"]["count"] == 6 and facts["classes"]["same"] == 6
    assert set(facts["classes"]["by_class"]) <= {"cat", "dog"}
    told = capsys.readouterr().err
    assert "6 of 6 classes told as before" in told and "text-classification" in told.splitlines()[-1]
    assert call(["verify", str(tmp_path / "out"), "--base", str(home / "model")]) == 0
    assert "6 of 6 as trained" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["hf", "peft", "awq"])
def test_the_model_card_is_one_that_the_hub_reads(to, home, tmp_path):
    (home / "model" / "README.md").write_text("---\nlicense: mit\n---\n# A tiny model\n")
    exported(home, "run", tmp_path / "out", "--to", to)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "model"
    assert card.data.library_name == ("peft" if to == "peft" else "transformers")
    assert "graft" in card.data.tags and card.data.pipeline_tag == "text-generation"
    (result,) = card.data.eval_results  # of the perplexity after training
    assert result.metric_type == "perplexity" and result.dataset_name == "rows.jsonl"
    recorded = json.loads((home / "run" / "evaluation.json").read_text())["columns"]
    assert result.metric_value == pytest.approx(list(recorded.values())[-1]["perplexity"], abs=1e-5)
    assert "created by" not in card.text and "graft 0." in card.text and "2 of 4 rows" in card.text


def test_all_files_of_runs_and_exports_have_the_umasks_mode(home, tmp_path):
    for to in ("hf", "peft"):
        exported(home, "run", tmp_path / to, "--to", to)
    assert call(["quantize", str(home / "model"), str(tmp_path / "packed"), "--to", "nf4"]) == 0
    folders = [home / "run", *(tmp_path / name for name in ("hf", "peft", "packed"))]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    plain = tmp_path / "plain"
    plain.write_text("")
    wanted = stat.S_IMODE(plain.stat().st_mode)
    assert len(files) > 20
    wrong = {
        path.name: oct(path.stat().st_mode) for path in files if stat.S_IMODE(path.stat().st_mode) != wanted
    }
    assert not wrong
