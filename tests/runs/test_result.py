"""Results that show themselves: lines for people, a card in a notebook."""

from pathlib import Path

import pytest
from short_run import short_run, write_home

import graft
from graft.runs.result import RunResult


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    home = write_home(tmp_path_factory.mktemp("result"))
    return graft.run(short_run(home, home / "run"))


def test_a_result_says_what_how_well_where_and_what_next(result):
    lines = repr(result).splitlines()
    before, after = (result.scores[name]["perplexity"] for name in ("before", "after"))
    assert lines[0].startswith("RunResult sft: lora on ")
    told = {line.split()[0]: line[10:] for line in lines[1:]}
    assert told["steps"].startswith(f"4, {result.tokens} tokens learnt, ")
    assert told["scores"] == f"perplexity {before:.4g} -> {after:.4g}"
    assert told["loss"] == f"{result.loss:.4g}"
    assert told["adapter"] == str(result.adapter) and told["next"] == f"graft chat {result.folder}"
    assert Path(told["report"]).exists() and result.seconds > 0
    assert len({line.index(line[10:]) for line in lines[1:]}) == 1, "aligned"


def test_the_card_has_scores_the_loss_and_the_report(result):
    html = result._repr_html_()
    assert html.count("<polyline") == 1 and "report.html" in html and "graft chat" in html
    assert f"{result.scores['after']['perplexity']:.4g}" in html


def test_a_card_escapes_everything_and_needs_no_folder():
    evil = "<img src=x onerror=alert(1)>"
    scores = {evil: {evil: 1.0}, "after": {evil: 2.0}}
    shown = RunResult(Path(evil), Path(evil), 1, 0.5, 10, scores, notes=[evil], about=evil)
    assert "<img" not in shown._repr_html_() and "&lt;img" in shown._repr_html_()
    assert "scores" in repr(shown)


def test_a_plan_and_a_merge_show_themselves(result, tmp_path):
    plan = graft.plan({"model": "seedling", "quant": "nf4"})
    assert repr(plan) == str(plan) and "<table" in plan._repr_html_() and "seedling" in plan._repr_html_()
    base = graft.load("seedling", quant="nf4")
    base.attach("shop", graft.LoRA(r=2, target_modules=["q_proj"]))
    merged = base.merge("shop")
    assert f"{len(merged.dequantised)} packed layers are 16-bit now" in repr(merged)
    assert "base.unmerge('shop')" in repr(merged) and "<table" in merged._repr_html_()


def test_an_export_is_a_path_that_shows_its_certificate(result, tmp_path):
    base = graft.load("seedling", dtype="fp32")
    base.attach("shop", graft.LoRA(r=2))
    folder = graft.export(base, tmp_path / "out", to="peft")
    assert isinstance(folder, Path) and folder == tmp_path / "out" and f"{folder}" == str(tmp_path / "out")
    assert "shop on seedling" in repr(folder) and f"graft verify {folder}" in repr(folder)
    assert "<table" in folder._repr_html_() and "\n" not in repr(folder / "adapter_config.json")
    assert folder.certificate["format"] == "peft"
