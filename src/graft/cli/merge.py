"""graft merge: fold adapters into the base, write one ordinary model, and print what that cost."""

import json as codec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.export import certificate_lines, rows_line
from graft.cli.say import after, show, show_json, table, talk
from graft.cli.wait import begin
from graft.errors import UsageError, one_of
from graft.sizes import size_of
from graft.storage import refuse_occupied

if TYPE_CHECKING:
    from graft.runs.open import Opened
    from graft.shipping.origin import Origin

FORMS = ("model", "adapter")
WAYS = {
    "dequantised": "what was trained, rounded once",
    "original": "the unquantised weights (it was trained on the quantised ones)",
    "packed": "quantised again; QA-LoRA fits into the groups exactly",
}


def add_to(app: typer.Typer) -> None:
    app.command("merge", help="Fold adapters into their base, and print what it cost.")(merge)


def merge(
    model: Annotated[str, typer.Argument(help="A run, an adapter, or a base with --adapter.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER; several are blended.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER: its weight in the blend, by default 1.")
    ] = None,
    how: Annotated[str, typer.Option(help="cat (exact), svd, ties, dare_ties, average, ...")] = "cat",
    density: Annotated[
        float | None, typer.Option(help="Share of entries that ties, dare or magnitude keep.")
    ] = None,
    r: Annotated[int | None, typer.Option("--r", help="Rank of the blend, for svd and ..._svd.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which entries dare drops.")] = 0,
    form: Annotated[str, typer.Option("--as", help="model, or adapter for the blend alone.")] = "model",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    quant: Annotated[str | None, typer.Option(help="How to load the base: none, nf4, ...")] = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="Merge into a quantised base: dequantised, original, packed; by default all are measured."
        ),
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Quantised base: where the original weights are.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Merge even if rounding loses what was learnt.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    one_of("--as", form, FORMS)
    refuse_occupied(folder, force=force)  # before the work
    begin(f"loading {model}")
    from graft.runs.open import open_model  # torch costs seconds
    from graft.runs.origin import origin_of
    from graft.shipping.export import CERTIFICATE, REPORT, check_into, export, minima_hold

    opened = open_model(model, adapters=adapter or (), quant=quant)
    origin = origin_of(opened)
    check_into(opened.base, into)
    blended = _blend(opened, weight or [], how=how, density=density, r=r, seed=seed)
    to = "hf" if form == "model" else "peft"
    ways = _choices(opened, form, into, original, origin)
    if form == "model" and not into and opened.adapter and minima_hold(opened.base, [opened.adapter]):
        into = "packed"
    choice = {"adapter": opened.adapter, "into": into, "original": original}
    begin(f"merging into {folder}")
    written = export(opened.base, folder, to, **choice, force=force, lossy=lossy, origin=origin)
    facts = codec.loads((written / REPORT).read_text(encoding="utf-8")) if form == "model" else {}
    certificate = codec.loads((written / CERTIFICATE).read_text(encoding="utf-8"))
    if json:
        more = {"choices": ways, "certificate": certificate}
        show_json({"folder": str(written), "as": form, "blend": blended, **facts, **more})
    else:
        show(f"wrote   {written} ({size_of(written)})")
        if blended:
            parts = " + ".join(f"{number:g} {name}" for name, number in blended["weights"].items())
            talk(f"blended {parts} by {blended['how']}: {blended['trained']:,} parameters")
        _print_cost(facts)
        for line in certificate_lines(certificate):
            talk(line)
    if form == "model":
        after(f"graft chat {written}   (or: graft quantize {written} OUT)")
    else:
        after(f"graft chat {opened.base.name} --adapter {written}")


def _choices(
    opened: "Opened", form: str, into: str | None, original: str | None, origin: "Origin | None"
) -> list[dict[str, Any]]:
    """Measure and print the ways to merge into a quantised base; an empty list if one was chosen."""
    from graft.shipping.export import choices  # torch costs seconds

    if form != "model" or into or not opened.adapter or opened.base.quant == "none":
        return []
    if opened.base.adapters[opened.adapter].head is not None:  # a classifier is merged in one way
        return []
    prompts = origin.prompts if origin else None
    ways = choices(opened.base, [opened.adapter], original, prompts)
    header = ("--into", "bits", "survives", "logits differ", "perplexity", "what is written")
    talk(table(header, [_row(way) for way in ways]))
    measured = rows_line(origin.prompts.facts() | {"run": ""}) if origin and origin.prompts else "fixed texts"
    talk(f"        answers were measured on {measured}")
    return ways


def _row(way: dict[str, Any]) -> tuple[str, ...]:
    """Return a way to merge as cells of the table."""
    if "trouble" in way:
        return way["into"], "", "", "", "", f"unavailable: {way['trouble']}"
    merged = way["perplexity"]["merged"]
    perplexity = "" if merged is None else f"{merged:.4g}"
    cells = f"{way['bits']:.3g}", f"{way['kept']:.1%}", f"{way['logits']['mean']:.2g}"
    return way["into"], *cells, perplexity, WAYS[way["into"]]


def _blend(opened: "Opened", words: list[str], *, how: str, **settings: Any) -> dict[str, Any] | None:
    """Blend the opened adapters if there are several, or a weight or setting is given; else return None.

    The blend becomes the opened adapter. Returns how it was made, and its number of trained parameters.
    """
    known = list(opened.base.adapters)
    weights = dict.fromkeys(known, 1.0) | _weights(words, known)
    chosen = {key: value for key, value in settings.items() if key != "seed" and value is not None}
    if len(known) < 2 and not words and not chosen and how == "cat":
        return None
    from graft.combine.blend import blend  # torch costs seconds

    opened.adapter = " + ".join(known)
    if opened.adapter in known:  # a single adapter is only weighted
        opened.adapter += " weighted"
    blended = blend(opened.base, weights, opened.adapter, how, **settings)
    return {"weights": weights, "how": how, **settings, "trained": blended.count()}


def _weights(words: list[str], known: list[str]) -> dict[str, float]:
    """Return the weight of each adapter that a NAME=NUMBER word names.

    Raises UsageError for any other word.
    """
    weights = {}
    for word in words:
        name, _, number = word.rpartition("=")
        one_of("--weight", name, known, if_none="give --adapter NAME=FOLDER first")
        try:
            weights[name] = float(number)
        except ValueError:
            raise UsageError(
                f"--weight {word}", "a number after the =", f"write for example {name}=0.7"
            ) from None
    return weights


def _print_cost(facts: dict[str, Any]) -> None:
    """Print what merging each adapter into the weights cost."""
    for part in facts.get("adapters", []):
        moved = part["logits"]
        form = facts["packed"] or facts["dtype"]
        talk(f"merged  {part['adapter']}: {part['kept']:.1%} of its change survives the rounding to {form}")
        if moved is None:  # of a classifier the classes are compared
            continue
        effect = f"the adapter moves them by {moved['effect']:.2g}"
        talk(f"logits  differ by {moved['mean']:.2g} on average; {effect}")
    if facts.get("note"):
        talk(f"note    {facts['note']}")
