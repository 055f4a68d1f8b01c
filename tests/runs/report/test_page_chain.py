"""The page of a chain leads to the pages of its stages, and says how far they have come."""

import re

import yaml
from report_folder import SETTINGS, write_run

from graft.recipe.chain import read_chain
from graft.runs.report.chain import chain_report


def write_chain(folder, stages):
    chain = read_chain(SETTINGS | {"output": str(folder), "stages": stages})
    for name in chain.recipes:
        write_run(folder / name, 6)
    (folder / "recipe.yaml").write_text(chain.yaml())
    return folder


def test_every_stage_has_its_line_and_a_link_that_leads_somewhere(tmp_path):
    folder = write_chain(tmp_path / "both", ["pretrain", {"name": "taught", "stage": "sft"}])
    page = chain_report(folder)
    links = re.findall(r'href="([^"#]*)"', page)
    assert links == ["pretrain/report.html", "taught/report.html"]
    assert all((folder / link).parent.is_dir() for link in links)
    assert "<td>taught</td><td>6</td><td>60 s</td><td>perplexity</td><td>100</td><td>4</td>" in page
    assert (
        "2 stages one after the other, 2 of them finished." in page and "After the last stage, taught" in page
    )


def test_a_stage_that_has_not_finished_is_said_to_be_so(tmp_path):
    folder = write_chain(tmp_path / "half", ["pretrain", "sft"])
    (folder / "sft" / "finished.json").unlink()
    page = chain_report(folder)
    assert "1 of them finished" in page and "<td>not finished</td>" in page
    assert "After the last stage, pretrain" in page
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["stages"]


def test_names_of_stages_are_escaped(tmp_path):
    folder = write_chain(tmp_path / "<b>", ["sft"])
    assert "<b></h1>" not in chain_report(folder) and "&lt;b&gt;</h1>" in chain_report(folder)
