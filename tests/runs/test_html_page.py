"""A page of HTML shows every text as it is, and plotly gets what it can read."""

import json
import re
from html.parser import HTMLParser

import pytest

from graft.runs.charts import Chart
from graft.runs.html_page import chart_section, folded, html_page, section, table, texts, verbatim

HOSTILE = "</script><!--<script>alert(1)</script><img src=x onerror='alert(1)'>&amp;"


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "part",
    [
        section(HOSTILE, ""),
        table([[HOSTILE]]),
        table([], [HOSTILE]),
        texts([[HOSTILE]]),
        verbatim(HOSTILE),
        folded(HOSTILE, ""),
    ],
)
def test_a_text_is_shown_and_makes_no_element(part):
    seen = Seen(part)
    assert HOSTILE in seen.text and not {"script", "img"} & set(seen.elements)


def test_a_text_in_a_chart_stays_in_its_script():
    chart = Chart("Chart", [{"x": [1], "y": [2], "text": [HOSTILE]}])
    seen = Seen(part := chart_section(0, chart))
    assert seen.elements == ["h2", "div", "script"]
    traces = re.search(r"newPlot\('chart0',(\[.*\]),\{", part)[1]
    assert json.loads(traces) == [{"x": [1], "y": [2], "text": [HOSTILE]}]


def test_a_page_has_its_title_its_sections_and_plotly_once():
    page = html_page("a <b> title", [section("First", ""), section("Second", "")])
    seen = Seen(page)
    assert seen.elements.count("script") == 1 and seen.elements[-3:] == ["h1", "h2", "h2"]
    assert "<h1>a &lt;b&gt; title</h1><h2>First</h2><h2>Second</h2></body></html>" in page
    assert not re.search(r"<(link|script src|img)|@import", page.replace("<script>", "").split("</style>")[0])
