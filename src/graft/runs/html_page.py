"""Pages of HTML with sections, tables and charts, each one file that needs no network.

All texts are escaped, also those that plotly shows. A page contains plotly's script once.
"""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from graft.runs.charts import Chart

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
.texts{overflow-x:auto} .texts td{white-space:pre-wrap;min-width:9rem;border-top:1px solid #ddd}
pre{background:#f6f6f4;padding:.8rem;overflow-x:auto;white-space:pre-wrap}
"""


def html_page(title: str, sections: Sequence[str]) -> str:
    """Return a page.  sections: HTML."""
    script = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    title = escape(title)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style><script>{script}</script>'
    body = f"<h1>{title}</h1>{''.join(sections)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def section(title: str, body: str) -> str:
    """Return a section.  body: HTML."""
    return f"<h2>{escape(title)}</h2>{body}"


def chart_section(index: int, chart: Chart) -> str:
    """Return a section with a chart.  index: makes its element's name unique."""
    arguments = f"'chart{index}',{json.dumps(chart.traces)},{json.dumps(chart.layout())},{{responsive:true}}"
    call = f"Plotly.newPlot({arguments})".replace("<", "\\u003c")  # no text may end or open a script element
    place = f'<div id="chart{index}" style="height:{chart.height_rem}rem"></div>'
    return section(chart.title, f"{place}<script>{call}</script>")


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table of texts."""
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def texts(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table of long texts, with their line breaks."""
    return f'<div class="texts">{table(rows, header)}</div>'


def verbatim(text: str) -> str:
    """Return a text with its line breaks and spaces."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, body: str) -> str:
    """Return HTML that a click on its summary shows."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
