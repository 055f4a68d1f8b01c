"""Figures that are tables: matrices with coloured cells, and intervals drawn in their rows.

They need no script, and read as tables where nothing is drawn.
"""

from collections.abc import Sequence
from html import escape

STRONGEST = 60  # per cent of a colour that a cell has at most: text stays readable on it


def heat_table(
    corner: str,
    names: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[str, float | None, str]]],
) -> str:
    """Return a matrix.

    cells: of each row its text, its strength from -1 to 1 (None has no colour), and what a pointer shows.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, line))}</tr>'
        for name, line in zip(names, cells, strict=True)
    )
    head = f"<thead><tr><th>{escape(corner)}</th>{head}</tr></thead>"
    return f'<div class="scroll"><table class="heat">{head}<tbody>{rows}</tbody></table></div>'


def _cell(cell: tuple[str, float | None, str]) -> str:
    text, strength, told = cell
    title = f' title="{escape(told)}"' if told else ""
    if strength is None:
        return f"<td{title}>{escape(text)}</td>"
    heat = round(STRONGEST * min(1.0, abs(strength)))
    return (
        f'<td class="{"up" if strength >= 0 else "down"}" style="--heat:{heat}%"{title}>{escape(text)}</td>'
    )


def interval_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    spans: Sequence[tuple[float, float, float] | None],
    ends: tuple[float, float],
    *,
    title: str,
    middle: float | None = None,
) -> str:
    """Return a table whose last column draws an interval in every row.

    spans: (low, value, high) of each row, or None.  ends: of the column's scale.  title: of the column.
    middle: where a dotted line stands.
    """

    def share(value: float) -> str:
        low, high = ends
        return f"{100 * (value - low) / (high - low or 1):.2f}%"

    line = f'<i class="half" style="--at:{share(middle)}"></i>' if middle is not None else ""

    def drawn(span: tuple[float, float, float] | None) -> str:
        if span is None:
            return f'<td class="span">{line}</td>'
        low, value, high = span
        wide = 100 * (high - low) / (ends[1] - ends[0] or 1)
        place = f'<i class="range" style="--from:{share(low)};--wide:{wide:.2f}%"></i>'
        return f'<td class="span">{line}{place}<i class="dot" style="--at:{share(value)}"></i></td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in (*header, title))
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}{drawn(span)}</tr>"
        for row, span in zip(rows, spans, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
