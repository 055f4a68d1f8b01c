"""Cards of HTML: every text is escaped, and lines are drawn to scale."""

import re
from xml.etree import ElementTree

import pytest

from graft.core import html_card

EVIL = "<script>alert('x')</script>&\""

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "html",
    [
        html_card.card([], EVIL),
        html_card.table([[EVIL, EVIL]], [EVIL, EVIL]),
        html_card.facts({EVIL: "safe"}),
        html_card.of_text(f"{EVIL}   {EVIL}", EVIL),
        html_card.code(EVIL),
        html_card.link(EVIL, EVIL),
        html_card.lines([EVIL]),
        html_card.bar(EVIL, 1, 2, [EVIL]),
        html_card.spark([1.0, 2.0], EVIL),
    ],
)
def test_no_text_becomes_markup(html):
    assert "<script" not in html and "alert(" in html
    tree = ElementTree.fromstring(re.sub(r"&(?!amp;|lt;|gt;|quot;|#)", "&amp;", f"<div>{html}</div>"))
    assert EVIL in "".join(tree.itertext()) or EVIL in str([part.attrib for part in tree.iter()])


def test_a_line_goes_from_the_first_to_the_last_number_between_the_edges():
    html = html_card.spark([4.0, float("nan"), 2.0, 3.0], "loss")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', html)[1].split()]
    assert [x for x, _ in points] == [0, html_card.WIDE / 2, html_card.WIDE]
    heights = [y for _, y in points]
    assert heights[0] == min(heights) == 2 and heights[1] == max(heights) == html_card.HIGH - 2
    assert "loss 4 → 3" in html


def test_a_long_line_is_thinned_and_keeps_its_last_number():
    values = [float(i) for i in range(10_001)]
    few = html_card.thinned(values, 200)
    assert len(few) <= 200 and few[-1] == 10_000 and few == sorted(few)


def test_fewer_than_two_numbers_are_no_line():
    assert html_card.spark([1.0], "loss") == html_card.spark([], "loss") == ""
