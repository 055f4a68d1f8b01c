"""How values show themselves in a notebook: small cards of HTML without scripts. All texts are escaped.

Colours are those of the page that shows them, so that light and dark ones fit.
"""

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

POINTS = 200  # of a line; more are averaged
WIDE, HIGH = 360, 48  # of a line's picture, in pixels
LINE = "1px solid rgba(128,128,128,.35)"
CELL = f"text-align:left;vertical-align:top;padding:.15em 1.2em .15em 0;border-bottom:{LINE}"
CODE = "font-family:ui-monospace,monospace;font-size:92%;white-space:pre-wrap"


def card(parts: Sequence[str], title: str = "") -> str:
    """Return a card.  parts: HTML."""
    head = f'<div style="font-weight:600;margin-bottom:.3em">{escape(title)}</div>' if title else ""
    style = f"border:{LINE};border-radius:6px;padding:.7em 1em;margin:.3em 0;max-width:46em;overflow-x:auto"
    return f'<div style="{style}">{head}{"".join(parts)}</div>'


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table of texts."""
    head = "".join(f'<th style="{CELL}">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.3em 0"
    return f'<table style="{style}">{head}<tbody>{body}</tbody></table>'


def facts(named: Mapping[str, str]) -> str:
    """Return names with their values, one a line.  named: values that are HTML."""
    rows = "".join(
        f'<tr><td style="{CELL};opacity:.7">{escape(name)}</td><td style="{CELL}">{value}</td></tr>'
        for name, value in named.items()
    )
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.3em 0"
    return f'<table style="{style}"><tbody>{rows}</tbody></table>'


def of_text(text: str, title: str = "") -> str:
    """Return a card of lines that are names, at least two spaces, and what they say."""
    pairs = [line.partition("  ") for line in text.splitlines() if line.strip()]
    return card([table([(name, rest.strip()) for name, _, rest in pairs])], title)


def code(text: str) -> str:
    """Return a command to copy."""
    return f'<code style="{CODE}">{escape(text)}</code>'


def link(target: str, text: str) -> str:
    """Return a link to a file.  target: its path."""
    return f'<a href="{escape(target)}" target="_blank">{escape(text)}</a>'


def lines(texts: Sequence[str]) -> str:
    """Return lines of text."""
    return "".join(f'<div style="{CODE};opacity:.85">{escape(text)}</div>' for text in texts)


def bar(what: str, done: int, total: int, words: Sequence[str]) -> str:
    """Return a line with a bar.  total: 0 where nobody knows how much there is."""
    share = f'value="{min(done, total)}" max="{total}"' if total else ""
    progress = f'<progress style="width:14em;margin:0 .8em" {share}></progress>'
    told = escape("   ".join(words))
    return f'<div style="white-space:pre;{CODE}">{escape(what)}{progress}{told}</div>'


def spark(values: Sequence[float], what: str) -> str:
    """Return a line of numbers as a picture, with the first and the last of them beside it."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    points = thinned(finite, POINTS)
    low, high = min(points), max(points)
    step, span = WIDE / (len(points) - 1), (high - low) or 1.0
    drawn = " ".join(
        f"{place * step:.1f},{2 + (HIGH - 4) * (high - value) / span:.1f}"
        for place, value in enumerate(points)
    )
    line = f'<polyline fill="none" stroke="currentColor" stroke-width="1.5" points="{drawn}"/>'
    told = f"{escape(what)} {finite[0]:.4g} → {finite[-1]:.4g}"
    size = f'width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}"'
    picture = f'<svg {size} role="img" aria-label="{told}" style="color:#0b8a83;max-width:100%">{line}</svg>'
    return f'<div style="margin:.3em 0">{picture}<div style="opacity:.7">{told}</div></div>'


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many numbers: the means of groups that follow one another, and the last number.

    >>> thinned([1.0, 3.0, 5.0, 7.0, 8.0], 3)
    [2.0, 6.0, 8.0]
    """
    if len(values) <= most:
        return list(values)
    *rest, last = values
    group = -(-len(rest) // (most - 1))
    return [*(fmean(rest[begin : begin + group]) for begin in range(0, len(rest), group)), last]
