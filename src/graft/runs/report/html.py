"""Pages of HTML with sections, tables and curves, each one file that needs no network.

All texts are escaped. A page forbids the browser every connection, and every script but its own (a content
security policy with their hashes). Curves are drawn by uPlot, whose script a page with curves contains once.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from graft.runs.report.curves import Chart

LONG = 3  # sections from which on a page has a table of contents
SHOWN = 20_000  # characters of a text that a page shows


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own.  body: HTML."""

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """The name by which links find it."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def html_page(
    title: str, sections: Sequence[Section], charts: Sequence[Chart] = (), *, kind: str = "", head: str = ""
) -> str:
    """Return a page.

    charts: those that `figure` stands for in the sections.  kind: what stands over the title.  head: HTML
    under it.
    """
    drawing = [_asset("uPlot.iife.min.js"), _asset("report.js")] if charts else []
    style = _asset("report.css") + (_asset("uPlot.min.css") if charts else "")
    scripts = " ".join(f"'{_digest(script)}'" for script in drawing) or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main><header>",
        f'<p class="eyebrow">{escape(kind)}</p>' if kind else "",
        f"<h1>{escape(title)}</h1>{head}</header>",
        _contents(sections) if len(sections) > LONG else "",
        *(
            f'<section id="{part.anchor}"><h2>{escape(part.title)}</h2>{part.body}</section>'
            for part in sections
        ),
        "</main>",
    ]
    if charts:
        data = json.dumps([chart.json() for chart in charts], separators=(",", ":"))
        data = data.replace("<", "\\u003c")  # no text may end or open a script element
        notice = escape(_asset("uPlot.LICENSE.txt"))
        parts.append(f'<script type="application/json" id="charts">{data}</script>')
        parts.append(f"<template>uPlot, which draws the curves: {notice}</template>")
        parts += [f"<script>{script}</script>" for script in drawing]
    return "".join(parts) + "</body></html>\n"


def figure(number: int, chart: Chart) -> str:
    """Return the place of a chart.  number: its place among the charts of the page."""
    wide = " wide" if chart.wide else ""
    caption = f"<figcaption>{escape(chart.title)}</figcaption>"
    return f'<figure class="chart{wide}">{caption}<div class="plot" data-chart="{number}"></div></figure>'


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), *, numbers: Sequence[int] = ()) -> str:
    """Return a table of texts, which scrolls inside itself.  numbers: columns that are set to the right."""
    head = f"<thead><tr>{''.join(_cells(header, 'th', numbers))}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(_cells(row, 'td', numbers))}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names with what they are; of a pair whose text is empty, nothing."""
    told = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text)
    return f'<dl class="facts">{"".join(told)}</dl>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph.  kind: lead or soft."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """Return a list of texts."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def verbatim(text: str) -> str:
    """Return a text with its line breaks and spaces; of a very long one the beginning."""
    return f'<pre class="wrap" dir="auto">{escape(shortened(text))}</pre>'


def folded(summary: str, body: str) -> str:
    """Return HTML that a click on its summary shows."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def shortened(text: str, most: int = SHOWN) -> str:
    """Return a text, or its beginning and how much is missing.

    >>> shortened("abcdef", 4)
    'abcd … (2 more characters)'
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _cells(cells: Sequence[str], element: str, numbers: Sequence[int]) -> list[str]:
    """Return the cells of a row; long texts get room."""
    kinds = ["number" if i in numbers else "long" if len(cell) > 60 else "" for i, cell in enumerate(cells)]
    marks = [f' class="{kind}"' if kind else "" for kind in kinds]
    return [f"<{element}{mark}>{escape(cell)}</{element}>" for mark, cell in zip(marks, cells, strict=True)]


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in sections)
    return f'<nav class="toc" aria-label="Contents"><ul>{links}</ul></nav>'


def _asset(name: str) -> str:
    """Return a file that is part of the package: styles, scripts, a licence."""
    return files("graft").joinpath("runs/report/web", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the hash by which a page's policy knows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
