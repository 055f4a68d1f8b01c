"""A browser shows the page of a run on a phone and a screen: nothing sticks out, nothing goes wrong."""

import pytest
from browser import CHROMIUM, look
from report_folder import write_run

from graft import storage
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.runs.judgement_page import judgement_page
from graft.runs.page import report

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
def test_nothing_is_wider_than_the_window(kind, width, request, tmp_path):
    looked = look(request.getfixturevalue(kind), tmp_path, width, measured=True)
    assert looked.told("client") in (str(width), str(width - 15)), (
        "the window has the width that was asked for"
    )
    assert int(looked.told("scroll")) <= int(looked.told("client")) and not looked.told("wide")


def test_its_curves_are_drawn_and_the_console_is_silent(run_page, tmp_path):
    looked = look(run_page, tmp_path, 800)
    assert looked.said == [] and looked.html.count("<canvas") == run_page.count("data-chart=") > 3
    assert "at the end" in looked.html, "a legend shows the last values until a pointer is over the curve"


def test_a_script_that_is_not_the_pages_own_does_not_run(run_page, tmp_path):
    strange = "<script>document.documentElement.dataset.ran = 'yes'</script></body>"
    looked = look(run_page.replace("</body>", strange), tmp_path, 800)
    assert not looked.told("ran") and any("Content Security Policy" in line for line in looked.said)
