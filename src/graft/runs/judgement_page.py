"""The page of some judgements: ratings, wins, agreement, what sways the judges, and disputed pairs."""

from collections import Counter
from collections.abc import Sequence

from graft.evaluate.agreement import Agreement, length_bias, order_bias
from graft.evaluate.answer_files import Answers
from graft.evaluate.disputes import Item, most_disputed
from graft.evaluate.judgements import FIRST, SECOND, Judgement
from graft.evaluate.leaderboard import Leaderboard
from graft.evaluate.leaderboard_text import facts, interval, number, places
from graft.runs.charts import Chart
from graft.runs.html_page import chart_section, folded, html_page, section, table, texts, verbatim
from graft.runs.judgement_charts import alike, ratings, sways, wins

ITEMS = 12  # pairs of answers on the page
ALL = "all judges"


def judgement_page(
    title: str, board: Leaderboard, judgements: Sequence[Judgement], answers: Answers, *, seed: int = 0
) -> str:
    """Return the page, in HTML.

    board: the leaderboard of these judgements; its numbers are those on the page.  answers: that were judged,
    as far as they are at hand.  seed: decides the drawn prompts behind the intervals of single judges.
    """
    drawn, cells = [ratings(board), wins(board)], _sways(board, judgements, seed)
    sections = [section("Judgements", verbatim("\n".join(facts(board))))]
    sections += [_with_table(0, drawn[0], places(board)), chart_section(1, drawn[1])]
    if board.agreement is not None:
        sections.append(section("Agreement of the judges", _agreement(board.agreement)))
        if len(board.agreement.judges) > 2:
            sections.append(chart_section(2, alike(board.agreement)))
    if cells is not None:
        sections.append(_with_table(3, *cells))
    items = most_disputed(judgements, ITEMS)
    return html_page(
        title, [*sections, section("Pairs of answers, the most disputed first", _items(items, answers))]
    )


def _with_table(index: int, chart: Chart, cells: tuple[Sequence[str], Sequence[Sequence[str]]]) -> str:
    """Return a section with a chart and the header and rows of its numbers."""
    header, rows = cells
    return chart_section(index, chart) + table(rows, header)


def _agreement(agreed: Agreement) -> str:
    """Return how far the judges agree as tables."""
    told = [
        ("judges", ", ".join(agreed.judges)),
        ("pairs of answers that all of them judged", f"{agreed.items:,}"),
        ("the same verdict, of pairs of judges", f"{agreed.same:.1%}"),
        ("Fleiss' kappa", number(agreed.kappa)),
    ]
    ranks = [(*pair, number(tau), number(agreed.spearman[pair])) for pair, tau in agreed.kendall.items()]
    return table(told) + table(ranks, ("judge", "judge", "Kendall", "Spearman"))


def _sways(
    board: Leaderboard, judgements: Sequence[Judgement], seed: int
) -> tuple[Chart, tuple[Sequence[str], Sequence[Sequence[str]]]] | None:
    """Return what sways all judges and each of them, as a chart and its table; None if nothing is known."""
    names = sorted({one.judge for one in judgements})
    own = {name: [one for one in judgements if one.judge == name] for name in names if len(names) > 1}
    # A single judge's numbers are the board's. They stand under its name.
    whole = ALL if own else names[0] or "the judge"
    orders = {whole: board.order} | {name: order_bias(said, seed=seed) for name, said in own.items()}
    lengths = {whole: board.length} | {name: length_bias(said, seed=seed) for name, said in own.items()}
    first = {name: bias.first for name, bias in orders.items() if bias is not None}
    longer = {name: share for name, share in lengths.items() if share is not None}
    if not first and not longer:
        return None
    rows = []
    for name, bias in orders.items():
        share = lengths[name]
        row = [name, *([f"{bias.first.value:.1%}", interval(bias.first, ".1%")] if bias else ["", ""])]
        row.append(f"{bias.consistent.value:.1%}" if bias else "")
        rows.append([*row, *([f"{share.value:.1%}", interval(share, ".1%")] if share else ["", ""])])
    header = ("judge", "shown first gets", "95 %", "same in both orders", "longer gets", "95 %")
    return sways(first, longer), (header, rows)


def _items(items: Sequence[Item], answers: Answers) -> str:
    """Return pairs of answers with what was said of them."""
    parts = []
    for item in items:
        known = [answers.get(model, {}).get(item.prompt) for model in item.pair]
        pair = [answer.text if answer else "(not at hand)" for answer in known]
        parts.append(texts([(item.prompt, *pair)], ("prompt", *item.pair)))
        said = Counter(_better(one) for one in item.judgements)
        summary = ", ".join(f"{name} {count}" for name, count in said.most_common())
        parts.append(
            folded(f"better: {summary}", texts([_said(one, item) for one in item.judgements], _header(item)))
        )
    if not any(answers.get(model, {}).get(item.prompt) for item in items for model in item.pair):
        parts.insert(0, "<p>The answers are not at hand: give their files to graft rank with --answers.</p>")
    return "".join(parts)


def _header(item: Item) -> tuple[str, ...]:
    return ("judge", "shown first", "better", *(f"marks of {model}" for model in item.pair), "said")


def _said(one: Judgement, item: Item) -> list[str]:
    """Return what one judge said of a pair of answers, a cell for each name of `_header`."""
    marks = dict(zip((one.first, one.second), one.scores or ("", ""), strict=True))
    return [one.judge, one.first, _better(one), *(f"{marks[model]}" for model in item.pair), one.said]


def _better(one: Judgement) -> str:
    """Return which model a judgement prefers."""
    words = {FIRST: one.first, SECOND: one.second, None: "no verdict"}
    return words.get(one.verdict, "tie")
