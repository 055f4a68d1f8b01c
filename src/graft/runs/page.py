"""The report.html of a run: curves, scores, data, samples and settings on one page that needs no network.

Everything is read from the run's folder. Texts of rows and models are escaped. The page contains plotly's
script once.
"""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
pre{background:#f6f6f4;padding:.8rem;overflow-x:auto;white-space:pre-wrap} .chart{height:20rem}
"""


def report(folder: Path) -> str:
    """Return the page of one run. Parts whose files are missing are left out."""
    metrics = _lines(folder / "metrics.jsonl")
    timing = _lines(folder / "timing.jsonl")
    charts = {
        "Loss": _curves(metrics, ("loss", "eval_loss")),
        "Learning rate": _curves(metrics, ("lr",)),
        "Gradient norm": _curves(metrics, ("grad_norm",)),
        "Accuracy": _curves(metrics, ("accuracy", "eval_accuracy")),
        "Rewards": _curves(metrics, (*_of_answers("reward"), "margin", "reference_point")),
        "Log-probabilities of answers": _curves(metrics, _of_answers("logp")),
        "Tokens per second": _curves(timing, ("tokens_per_s",)),
    }
    curves = [_chart(index, title, traces) for index, (title, traces) in enumerate(charts.items()) if traces]
    evaluation = _json(folder / "evaluation.json")
    scores = [_section("Before and after", _scores(evaluation["columns"]))] if evaluation else []
    if evaluation and "calibration" in evaluation.get("curves", {}):
        curves.append(_calibration(len(curves), evaluation["curves"]["calibration"]))
    answers = (
        [_section("Answers", _answers(evaluation["texts"]))] if evaluation and evaluation["texts"] else []
    )
    sections = scores + curves + answers
    data = _json(folder / "data_report.json")
    if data:
        sections.append(_section("Data", _table([(key, _plain(value)) for key, value in data.items()])))
    notes = _json(folder / "notes.json")
    if notes:
        sections.append(_section("Notes", _table([(text,) for text in notes])))
    sections += [_section(title, f"<pre>{escape(text)}</pre>") for title, text in _texts(folder) if text]
    title = escape(f"graft run {folder.name}")
    script = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style><script>{script}</script>'
    body = f"<h1>{title}</h1>{''.join(sections)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _of_answers(what: str) -> list[str]:
    """Return the names under which runs on compared answers record a number of them."""
    return [f"{what}_{kind}" for kind in ("chosen", "rejected", "good", "bad")]


def _texts(folder: Path) -> list[tuple[str, str]]:
    """Return (title, text) of the files that are shown as they are."""
    named = {"Samples": "samples.md", "Settings": "recipe.yaml"}
    return [
        (title, path.read_text(encoding="utf-8"))
        for title, name in named.items()
        if (path := folder / name).exists()
    ]


def _curves(records: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a plotly trace for each name that some record has."""
    traces = []
    for name in names:
        points = [(record["step"], record[name]) for record in records if name in record and "step" in record]
        if points:
            steps, values = zip(*points, strict=True)
            traces.append(
                {
                    "x": steps,
                    "y": values,
                    "name": name.replace("_", " "),
                    "mode": "lines" if len(points) > 30 else "lines+markers",
                }
            )
    return traces


def _calibration(index: int, points: Sequence[Sequence[float]]) -> str:
    """Return the chart of a reward model.  points: its probability, share of right pairs, number of pairs."""
    probability, right, pairs = zip(*points, strict=True)
    told = {
        "x": probability, "y": right, "text": [f"{n} pairs" for n in pairs], "mode": "lines+markers",
        "name": "share of right pairs",
    }  # fmt: skip
    ideal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "name": "as it should be"}
    return _chart(
        index, "Calibration", [told, ideal], "probability of the preferred answer, as the model says"
    )


def _chart(index: int, title: str, traces: list[dict[str, Any]], x: str = "step") -> str:
    """Return a section with a chart.  index: makes its element's name unique.  x: what the axis shows."""
    axis = {"title": {"text": x}}
    layout = {"margin": {"t": 10, "r": 10}, "xaxis": axis, "showlegend": len(traces) > 1}
    arguments = f"'chart{index}',{json.dumps(traces)},{json.dumps(layout)},{{responsive:true}}"
    call = f"Plotly.newPlot({arguments})".replace("</", "<\\/")  # "</" would end the script element anywhere
    return _section(title, f'<div id="chart{index}" class="chart"></div><script>{call}</script>')


def _scores(columns: dict[str, dict[str, Any]]) -> str:
    """Return {column: {metric: value}} as a table, one metric a row."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [(name, *(_plain(column.get(name, "")) for column in columns.values())) for name in names]
    return _table(rows, ("metric", *columns))


def _answers(texts: Sequence[dict[str, Any]]) -> str:
    """Return the texts of an evaluation as a table."""
    return _table([[_plain(value) for value in text.values()] for text in texts], [*texts[0]])


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _plain(value: Any) -> str:
    """Return a JSON value as text: numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
