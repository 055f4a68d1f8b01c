"""The page of some judgements: ratings, wins, agreement, what sways the judges, and disputed pairs."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from graft.evaluate.agreement import Agreement, length_bias, order_bias
from graft.evaluate.answer_files import Answers
from graft.evaluate.disputes import Item, most_disputed
from graft.evaluate.judgements import FIRST, SECOND, Judgement
from graft.evaluate.leaderboard import Leaderboard
from graft.evaluate.leaderboard_text import facts, interval, number
from graft.runs.report.answers import block
from graft.runs.report.html import Section, folded, html_page, paragraph, table, verbatim
from graft.runs.report.judgement_charts import alike, ratings, sways, wins

ITEMS = 12  # pairs of answers on the page
ALL = "all judges"


def judgement_page(
    title: str, board: Leaderboard, judgements: Sequence[Judgement], answers: Answers, *, seed: int = 0
) -> str:
    """Return the page, in HTML.

    board: the leaderboard of these judgements; its numbers are those on the page.  answers: that were judged,
    as far as they are at hand.  seed: decides the drawn prompts behind the intervals of single judges.
    """
    best = board.places[0]
    lead = (
        f"{best.model} is rated best of {len(board.places)} models: {best.rating.value:.0f} "
        f"({interval(best.rating, '.0f')}), after {board.judgements:,} judgements on "
        f"{board.prompts:,} prompts."
    )
    sections = [Section("Ratings", ratings(board))]
    sections.append(Section("Points won by the row's model against the column's", wins(board)))
    if board.agreement is not None:
        sections.append(Section("Agreement of the judges", _agreement(board.agreement)))
    if told := _sways(board, judgements, seed):
        sections.append(Section("What sways the judges", told))
    items = most_disputed(judgements, ITEMS)
    sections.append(Section("Pairs of answers, the most disputed first", _items(items, answers)))
    sections.append(Section("How it was judged", verbatim("\n".join(facts(board)))))
    return html_page(title, sections, kind="Judged answers, by Graft", head=paragraph(lead, "lead"))


def _agreement(agreed: Agreement) -> str:
    """Return how far the judges agree as tables."""
    told = [
        ("judges", ", ".join(agreed.judges)),
        ("pairs of answers that all of them judged", f"{agreed.items:,}"),
        ("the same verdict, of pairs of judges", f"{agreed.same:.1%}"),
        ("Fleiss' kappa", number(agreed.kappa)),
    ]
    ranks = [(*pair, number(tau), number(agreed.spearman[pair])) for pair, tau in agreed.kendall.items()]
    parts = table(told) + table(ranks, ("judge", "judge", "Kendall", "Spearman"))
    if len(agreed.judges) > 2:
        parts += f"<h3>How far two judges rank alike (Kendall)</h3>{alike(agreed)}"
    return parts


def _sways(board: Leaderboard, judgements: Sequence[Judgement], seed: int) -> str:
    """Return what sways all judges and each of them; "" if nothing is known."""
    names = sorted({one.judge for one in judgements})
    own = {name: [one for one in judgements if one.judge == name] for name in names if len(names) > 1}
    # A single judge's numbers are the board's. They stand under its name.
    whole = ALL if own else names[0] or "the judge"
    orders = {whole: board.order} | {name: order_bias(said, seed=seed) for name, said in own.items()}
    lengths = {whole: board.length} | {name: length_bias(said, seed=seed) for name, said in own.items()}
    rows = []
    for name, bias in orders.items():
        share = lengths[name]
        row = [name, *([f"{bias.first.value:.1%}", interval(bias.first, ".1%")] if bias else ["", ""])]
        row.append(f"{bias.consistent.value:.1%}" if bias else "")
        rows.append([*row, *([f"{share.value:.1%}", interval(share, ".1%")] if share else ["", ""])])
    header = ("judge", "shown first gets", "95 %", "same in both orders", "longer gets", "95 %")
    first = {name: bias.first if bias else None for name, bias in orders.items()}
    return sways(first, lengths, (header, rows))


def _items(items: Sequence[Item], answers: Answers) -> str:
    """Return pairs of answers with what was said of them."""
    cards = []
    for item in items:
        known = [answers.get(model, {}).get(item.prompt) for model in item.pair]
        sides = "".join(
            f"<div><h4>{escape(model)}</h4>{block(answer.text if answer else '(not at hand)')}</div>"
            for model, answer in zip(item.pair, known, strict=True)
        )
        said = Counter(_better(one) for one in item.judgements)
        summary = ", ".join(f"{name} {count}" for name, count in said.most_common())
        verdicts = table([_said(one, item) for one in item.judgements], _header(item))
        asked = f"<h3>Prompt</h3>{block(item.prompt)}"
        cards.append(
            f'<article class="answer">{asked}<div class="sides">{sides}</div>'
            f"{folded(f'better: {summary}', verdicts)}</article>"
        )
    told = ""
    if not any(answers.get(model, {}).get(item.prompt) for item in items for model in item.pair):
        told = paragraph("The answers are not at hand: give their files to graft rank with --answers.")
    return f'{told}<div class="answers">{"".join(cards)}</div>'


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
