"""A page of HTML shows every text as it is, and lets the browser run its own scripts and nothing else."""

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from graft.runs.report.answers import answers, block, marked, samples
from graft.runs.report.curves import Chart, Curve
from graft.runs.report.figures import heat_table, interval_table
from graft.runs.report.html import (
    Section,
    bullets,
    facts,
    figure,
    folded,
    html_page,
    paragraph,
    table,
    verbatim,
)
from graft.runs.report.rows import data

HOSTILE = "</script><!--<script>alert(1)</script><img src=x onerror='alert(1)'>&amp;"
CHART = Chart("Chart", [Curve(HOSTILE, [1, 2], [2.0, 3.0])])


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "part",
    [
        html_page("", [Section(HOSTILE, "")]),
        html_page(HOSTILE, []),
        figure(0, Chart(HOSTILE, [])),
        table([[HOSTILE]]),
        table([], [HOSTILE]),
        facts([(HOSTILE, HOSTILE)]),
        paragraph(HOSTILE),
        bullets([HOSTILE]),
        verbatim(HOSTILE),
        folded(HOSTILE, ""),
        block(HOSTILE),
        block(HOSTILE * 20),
        answers([{"prompt": HOSTILE, "references": [HOSTILE], "before": "", "after": HOSTILE}]),
        answers([{"prompt": HOSTILE, "references": ["a"], "after": "b"}]),
        answers([{"prompt": [{"role": HOSTILE, "content": HOSTILE}], "references": [], "after": "b\nc"}]),
        samples(f"## step 1\n\n{HOSTILE}\n\n{HOSTILE}\n\n---\n\n", [HOSTILE]),
        data({"samples": [{"source": HOSTILE, "pieces": [[HOSTILE, True]]}]}),
        data({"rejected": {HOSTILE: 1}, "rejects": [{"source": HOSTILE}], "labels": [HOSTILE]}),
        heat_table("", [HOSTILE], [HOSTILE], [[(HOSTILE, 0.5, HOSTILE)]]),
        interval_table([HOSTILE], [[HOSTILE]], [(1, 2, 3)], (0, 4), title=HOSTILE),
    ],
)
def test_a_text_is_shown_and_makes_no_element(part):
    seen = Seen(part)
    assert HOSTILE in seen.text and not {"script", "img"} & set(seen.elements)


def test_a_text_in_a_chart_stays_in_its_script():
    page = html_page("page", [Section("Curves", figure(0, CHART))], [CHART])
    assert Seen(page).elements.count("script") == 3
    (told,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    assert json.loads(told)[0]["curves"][0]["name"] == HOSTILE


def test_a_page_has_its_title_its_sections_and_ways_to_them():
    names = ["First", "Second <b>", "Third", "Fourth"]
    page = html_page("a <b> title", [Section(name, f"<p>{i}</p>") for i, name in enumerate(names)])
    assert "<h1>a &lt;b&gt; title</h1>" in page and "<h2>Second &lt;b&gt;</h2><p>1</p>" in page
    links = re.findall(r'<a href="#([^"]*)"', page)
    assert links == re.findall(r'<section id="([^"]*)"', page) == ["first", "second-b", "third", "fourth"]
    assert "<nav" not in html_page("", [Section("First", "")])


def test_a_page_without_curves_has_no_script_and_allows_none():
    page = html_page("title", [Section("First", "")])
    assert "script" not in Seen(page).elements and "script-src &#x27;none&#x27;" in page


def test_the_policy_of_a_page_knows_its_scripts_and_forbids_connections():
    page = html_page("title", [Section("Curves", figure(0, CHART))], [CHART])
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2 and policy.startswith("default-src 'none';")
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    assert f"script-src {allowed};" in policy
    assert not re.search(r"(src|href)\s*=\s*.?(https?:)?//|@import|url\(", page)


def test_a_page_fits_small_screens_and_follows_the_readers_colours():
    page = html_page("title", [])
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in page
    assert "prefers-color-scheme:dark" in page and "@media print" in page


def channels(colour):
    """Return the linear red, green and blue of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def contrast(one, two):
    """Return the contrast of two colours as WCAG 2 defines it."""
    light, dark = sorted(
        (sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels(x), strict=True)) for x in (one, two)),
        reverse=True,
    )
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_the_contrast_of_wcag_aa(dark):
    style = html_page("title", []).split("<style>")[1]
    blocks = re.findall(r":root(?::not\(\.print\))?\{([^}]*)\}", style)[:2]
    found = dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", blocks[0]))
    if dark:
        found |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", blocks[1]))
    pairs = [(text, on) for text in ("text", "soft", "accent") for on in ("page", "card", "code")]
    pairs += [("good", "good-tint"), ("bad", "bad-tint"), ("good", "card"), ("bad", "card")]
    pairs += [("text", on) for on in ("learnt", "note", "good-tint")]
    low = {pair: contrast(found[pair[0]], found[pair[1]]) for pair in pairs}
    assert min(low.values()) >= 4.5, low
    assert min(contrast(found[f"c{i}"], found["card"]) for i in range(1, 7)) >= 3, "curves"


def test_what_an_answer_shares_with_its_reference_is_marked():
    assert marked("a red cat", ["the dog", "the red cat"]) == "a <mark>red cat</mark>"
    assert marked("nothing else", ["x"]) == "nothing else"
    assert marked("<b> blue sky", ["blue sky <b>"]) == "&lt;b&gt; <mark>blue sky</mark>"
    assert marked("it is a lamp", ["a desk is"]) == "it is a lamp", "articles say nothing"


def test_answers_of_classes_are_short_and_say_whether_they_are_right():
    rows = [{"prompt": f"text {i}", "references": ["yes"], "after": "yes" if i else "no"} for i in range(9)]
    page = answers(rows)
    assert page.count("✓ right") == 8 and page.count("✗ wrong") == 1 and "<summary>3 more</summary>" in page
    assert "<h4>" not in page


def test_long_texts_are_folded_and_several_references_are_texts():
    page = answers([{"prompt": "p" * 900, "references": ["one", "two"], "before": "", "after": "one\nmore"}])
    assert "<details><summary>ppp" in page and "(900 characters)" in page
    assert "2 references, each of them right" in page and "[&quot;" not in page and "(nothing)" in page
