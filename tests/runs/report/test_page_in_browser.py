"""A browser shows the page of a run on a phone and a screen: nothing sticks out, nothing goes wrong."""

import re

import pytest
from browser import CHROMIUM, look, measured
from report_folder import write_run

from graft import storage
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.runs.report.judgements import judgement_page
from graft.runs.report.page import report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

UNBROKEN = "x" * 400  # a word that no line has room for


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("page") / "shop", steps=60)
    record = storage.read_record(run / "evaluation.json")
    record["texts"].append({"prompt": UNBROKEN, "references": [UNBROKEN], "before": "", "after": UNBROKEN})
    storage.write_record(run / "evaluation.json", record)
    return report(run)


@pytest.fixture(scope="module")
def judged_page():
    names = ["a model", UNBROKEN[:60], "c"]
    said = [
        Judgement(str(p), a, b, "1", characters=(9, 5), judge=judge, said=UNBROKEN)
        for p in range(3)
        for judge in ("x", "y", "z")
        for a in names
        for b in names
        if a < b
    ]
    return judgement_page("Judged", leaderboard(said), said, {})


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("kind", ["run_page", "judged_page"])
def test_nothing_is_wider_than_the_page(kind, width, request, tmp_path):
    found = measured(request.getfixturevalue(kind), tmp_path, width)
    assert found == {"client": str(width), "scroll": str(width), "late": ""}


def test_its_curves_are_drawn_and_the_console_is_silent(run_page, tmp_path):
    looked = look(run_page, tmp_path)
    assert looked.said == [] and looked.html.count("<canvas") == run_page.count("data-chart=") > 3
    values = re.findall(r'u-value">([^<]*)<', looked.html)
    assert values[:2] == ["60", "0.033333"] and "0.5" in values, "the last values, until a pointer is there"
    assert "<details data-fold" in looked.html and '<details data-fold="" open' not in looked.html


def test_a_script_that_is_not_the_pages_own_does_not_run(run_page, tmp_path):
    strange = "<script>document.documentElement.dataset.ran = 'yes'</script></body>"
    looked = look(run_page.replace("</body>", strange), tmp_path)
    assert not looked.told("ran") and any("Content Security Policy" in line for line in looked.said)
