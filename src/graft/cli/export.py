"""graft export: write the result in the layout that another program loads."""

import json as codec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.say import after, show, show_json, talk
from graft.cli.wait import begin
from graft.errors import UsageError, listed
from graft.sizes import size_of
from graft.storage import refuse_occupied

if TYPE_CHECKING:
    from graft.runs.open import Opened


def add_to(app: typer.Typer) -> None:
    app.command("export", help="Write a merged model (hf, gguf, awq, ...) or an adapter.")(export)


def export(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="Model: hf, gguf, gptq, awq, compressed-tensors, bnb; adapter: peft, vllm, gguf-lora."
        ),
    ] = "hf",
    form: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="For gguf: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1; by default q8_0, or q4_1 for int4.",
        ),
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER.")] = None,
    adapters: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of adapters or runs: each is written, beside the others."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Merge even if rounding loses what was learnt.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    refuse_occupied(folder, force=force)  # before the work
    if adapters:
        _several(model, folder, to, adapters, given=form or adapter or lossy, force=force, json=json)
        return
    begin(f"loading {model}")
    from graft.runs.open import open_model
    from graft.runs.origin import origin_of
    from graft.shipping.export import CERTIFICATE
    from graft.shipping.export import export as write  # torch costs seconds

    opened = open_model(model, adapters=adapter or ())
    how: dict[str, Any] = {"type": form, "adapter": opened.adapter, "force": force, "lossy": lossy}
    begin(f"writing {folder} as {to}")
    written = write(opened.base, folder, to, **how, origin=origin_of(opened))
    certificate = codec.loads((written / CERTIFICATE).read_text(encoding="utf-8"))
    if json:
        files = sorted(path.name for path in written.iterdir())
        show_json({"folder": str(written), "to": to, "files": files, "certificate": certificate})
    else:
        show(f"wrote   {written} ({size_of(written)})")
        for line in certificate_lines(certificate):
            talk(line)
    after(_next(written, to, opened))


def _several(
    model: str, folder: Path, to: str, adapters: list[Path], *, given: Any, force: bool, json: bool
) -> None:
    """Write every adapter of some folders. Exit code 1: some were left out."""
    if given:
        raise UsageError(
            "--adapters with --adapter, --type or --lossy", "one way to name them", "leave it out"
        )
    begin(f"loading {model}")
    from graft.runs.ask_adapters import adapters_in
    from graft.runs.open import Opened, open_model
    from graft.runs.origin import origin_of
    from graft.shipping.instructions import place_here
    from graft.shipping.several import commands, export_each

    found = {name: adapter.folder for name, adapter in adapters_in(adapters).items()}
    base = open_model(model).base
    for name in list(base.adapters):  # of a run whose base is meant
        base.detach(name)
    begin(f"writing {len(found)} adapters into {folder} as {to}")
    done = export_each(
        base, folder, to, found, origin_of=lambda name: origin_of(Opened(base, name)), force=force
    )
    if json:
        show_json({"folder": str(folder), "to": to, "ranks": done.written, "left_out": done.left_out})
    else:
        show(f"wrote   {folder} ({size_of(folder)})")
        talk(f"adapters {listed(done.written, 8)}")
    after(commands(place_here(base), to, done, str(folder))[0].lines)
    if done.left_out:
        raise typer.Exit(1)


def _next(written: Path, to: str, opened: "Opened") -> str:
    """Return what to do with an export."""
    from graft.shipping.export import LAYOUTS
    from graft.shipping.factors import rank_of
    from graft.shipping.instructions import place_here
    from graft.shipping.vllm import command

    base = opened.base.name

    if to.startswith("gguf"):
        others = f"for llama.cpp and vLLM see {written / 'README.md'}"
        return f"ollama create NAME -f {written / 'Modelfile'}   ({others})"
    if to == "vllm":
        adapter = opened.base.adapters[str(opened.adapter)]
        return command(
            place_here(opened.base), {adapter.name: str(written)}, rank_of(adapter), [adapter.trained_on]
        )
    if LAYOUTS[to].adapter_alone:
        return f"graft chat {base} --adapter {written}"
    config = codec.loads((written / "config.json").read_text(encoding="utf-8"))
    named = (config.get("architectures") or [""])[0]
    for word, task in {"Sequence": "text-classification", "Token": "token-classification"}.items():
        if named.endswith(f"For{word}Classification"):
            return f"transformers.pipeline({task!r}, {str(written)!r})   (in Python)"
    return f"graft chat {written}"


def certificate_lines(facts: dict[str, Any]) -> list[str]:
    """Return what a certificate measured, a line each."""
    weights, logits, perplexity = (facts[key] for key in ("weights", "logits", "perplexity"))
    lines = []
    if weights and weights["survived"] is not None:
        rounded = ", every packed layer anew" if facts.get("rounded") else ""
        lines.append(
            f"checked {weights['survived']:.1%} of what was learnt survives rounding{rounded} "
            "(good: above 50%; 100% is all of it)"
        )
    differences = f"logits differ by {logits['mean']:.2g} on average, {logits['max']:.2g} at most"
    if weights:
        differences = f"weights differ by {weights['max']:.2g} at most; {differences}"
    if facts.get("rounded") and not lines:
        differences = f"every packed layer rounded anew; {differences}"
    lines.append(f"        {differences}")
    if perplexity["written"] is not None:
        numbers = f"{perplexity['adapted']:.4g} before, {perplexity['written']:.4g} after"
        lines.append(f"        perplexity {numbers}, on {rows_line(facts['prompts'])}")
    if "classes" in facts:
        found = facts["classes"]
        told = f"{found['same']} of {found['count']} classes told as before"
        right = f"right: {found['adapted']} before, {found['written']} after"
        lines.append(f"        {told} ({right}), on {rows_line(facts['prompts'])}")
    if not lines[0].startswith("checked"):
        lines[0] = lines[0].replace("       ", "checked", 1)
    return lines


def certificate_line(facts: dict[str, Any]) -> str:
    """Return what a certificate measured, in one line."""
    return "; ".join(line.removeprefix("checked").strip() for line in certificate_lines(facts))


def rows_line(prompts: dict[str, Any]) -> str:
    """Return which rows a measurement is about."""
    if "run" not in prompts:
        return f"{prompts['rows']} fixed texts unlike your data"
    return f"{prompts['rows']} of the run's {prompts['of']:,} {prompts['kind']} rows"
