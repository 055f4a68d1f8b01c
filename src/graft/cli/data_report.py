"""The data report as lines for a terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.data import DataReport

BARS = "▁▂▃▄▅▆▇█"
SAMPLE = 600  # characters of a sample row that are shown


def report_lines(report: "DataReport", color: bool = True) -> list[str]:
    """Return the report as lines.  color: rich markup, learnt text green and the rest dim; else learnt text in ⟦⟧."""
    from rich.markup import escape  # late: `graft --help` must not wait for it

    share = 100 * report.tokens_learnt / max(report.tokens, 1)
    learnt = f"{report.tokens_learnt:,} learnt ({share:.0f} %)" if report.tokens_learnt else ""
    learnt = "   ".join(filter(None, [f"{len(report.labels)} classes" if report.labels else "", learnt]))
    rows = f"{report.train:,} train   {report.eval:,} eval   {len(report.rejects):,} rejected"
    most = max((count for _, count in report.histogram), default=1)
    spark = "".join(BARS[count * 7 // most] for _, count in report.histogram)
    lengths = report.lengths
    lines = [
        f"data    {report.read:,} rows read   {rows}",
        f"tokens  {report.tokens:,} in {report.examples:,} examples   {learnt}",
        f"length  median {lengths['50']}   90 % {lengths['90']}   longest {lengths['100']}"
        f"   limit {report.max_length}   {spark}",
    ]
    lines += [f"note    {text}" for text in report.notes()]
    lines += [f"reject  {count} x {reason}" for reason, count in report.rejected.items()]
    lines += [f"reject  {reject}" for reject in report.rejects[:3]]
    if color:
        lines = [escape(line) for line in lines]
    for sample in report.samples:
        source = escape(sample["source"]) if color else sample["source"]
        lines += ["", f"row     {source}", _painted(sample, color)]
    return lines


def _painted(sample: dict[str, Any], color: bool) -> str:
    from rich.markup import escape  # late, as above

    painted, room = [], SAMPLE
    for text, learnt in sample["pieces"]:
        shown = text if len(text) <= room else text[:room] + " …"
        room = max(0, room - len(text))
        style = "bold green" if learnt else "dim"
        painted.append(f"[{style}]{escape(shown)}[/]" if color else f"⟦{shown}⟧" if learnt else shown)
        if not room:
            break
    return "".join(painted)
