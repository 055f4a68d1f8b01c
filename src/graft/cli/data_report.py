"""Turn a data report into lines for a terminal."""

from typing import TYPE_CHECKING, Any

from graft.sizes import counted

if TYPE_CHECKING:
    from graft.data import DataReport

BARS = "▁▂▃▄▅▆▇█"
SAMPLE = 600  # characters of a sample row that are shown


def report_lines(report: "DataReport", color: bool = True) -> list[str]:
    """Return the report as lines.

    color: with rich markup, learnt text green and the rest dim; without it, learnt text is in ⟦⟧.
    """
    share = 100 * report.tokens_learnt / max(report.tokens, 1)
    learnt = f"{report.tokens_learnt:,} learnt ({share:.0f} %)" if report.tokens_learnt else ""
    learnt = "   ".join(filter(None, [f"{len(report.labels)} classes" if report.labels else "", learnt]))
    rows = f"{report.train:,} train   {report.eval:,} eval   {len(report.rejects):,} rejected"
    most = max((count for _, count in report.histogram), default=1)
    spark = "".join(BARS[count * 7 // most] for _, count in report.histogram)
    lengths = report.lengths
    lines = [
        f"data    {counted(report.read, 'row')} read   {rows}",
        f"tokens  {report.tokens:,} in {counted(report.examples, 'example')}   {learnt}",
        f"length  median {lengths['50']}   90 % {lengths['90']}   longest {lengths['100']}"
        f"   limit {report.max_length}   {spark}",
    ]
    lines += [f"note    {text}" for text in report.notes()]
    lines += [f"reject  {count} x {reason}" for reason, count in report.rejected.items()]
    lines += [f"reject  {reject}" for reject in report.rejects[:3]]
    lines = [_plain(line, color) for line in lines]
    for sample in report.samples:
        lines += ["", _plain(f"row     {sample['source']}", color), _painted(sample, color)]
    return lines


def _painted(sample: dict[str, Any], color: bool) -> str:
    """Return a sample row with its learnt text marked, cut after SAMPLE characters."""
    painted = []
    room = SAMPLE
    for text, learnt in sample["pieces"]:
        shown = text if len(text) <= room else text[:room] + " …"
        room = max(0, room - len(text))
        if color:
            painted.append(f"[{'bold green' if learnt else 'dim'}]{_plain(shown, color)}[/]")
        else:
            painted.append(f"⟦{shown}⟧" if learnt else shown)
        if not room:
            break
    return "".join(painted)


def _plain(text: str, color: bool) -> str:
    """Return text that shows as it is: in colour, marks of rich's in it are escaped."""
    if not color:
        return text
    from rich.markup import escape  # late: `graft --help` must answer at once

    return escape(text)
