"""graft export: write the result in the layout that another program loads."""

import json as codec
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, show_json, talk
from graft.cli.wait import begin
from graft.sizes import size_of
from graft.storage import refuse_occupied


def add_to(app: typer.Typer) -> None:
    app.command("export", help="Write a merged model (hf, gguf, awq, ...) or an adapter (peft).")(export)


def export(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    to: Annotated[
        str,
        typer.Option(help="Model: hf, gguf, gptq, awq, compressed-tensors, bnb; adapter: peft, gguf-lora."),
    ] = "hf",
    form: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="For gguf: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1; by default q8_0, or q4_1 for int4.",
        ),
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Merge even if rounding loses what was learnt.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    refuse_occupied(folder, force=force)  # before the work
    begin(f"loading {model}")
    from graft.runs.open import open_model
    from graft.shipping.export import CERTIFICATE, LAYOUTS
    from graft.shipping.export import export as write  # torch costs seconds

    opened = open_model(model, adapters=adapter or ())
    begin(f"writing {folder} as {to}")
    written = write(opened.base, folder, to, type=form, adapter=opened.adapter, force=force, lossy=lossy)
    certificate = codec.loads((written / CERTIFICATE).read_text(encoding="utf-8"))
    if json:
        files = sorted(path.name for path in written.iterdir())
        show_json({"folder": str(written), "to": to, "files": files, "certificate": certificate})
    else:
        show(f"wrote   {written} ({size_of(written)})")
        talk(f"checked {certificate_line(certificate)}")
    if to.startswith("gguf"):
        others = f"for llama.cpp and vLLM see {written / 'README.md'}"
        after(f"ollama create NAME -f {written / 'Modelfile'}   ({others})")
    else:
        alone = LAYOUTS[to].adapter_alone
        after(f"graft chat {opened.base.name} --adapter {written}" if alone else f"graft chat {written}")


def certificate_line(facts: dict[str, Any]) -> str:
    """Return what a certificate measured, in one line."""
    weights, logits, perplexity = (facts[key] for key in ("weights", "logits", "perplexity"))
    parts = ["rounded"] if facts.get("rounded") else []
    if weights and weights["survived"] is not None:
        parts.append(f"{weights['survived']:.1%} of the update survives")
    if weights:
        parts.append(f"weights differ by {weights['max']:.2g} at most ({weights['mean']:.2g} on average)")
    parts.append(f"logits by {logits['max']:.2g} ({logits['mean']:.2g})")
    if perplexity["written"] is not None:
        parts.append(f"perplexity {perplexity['adapted']:.4g} -> {perplexity['written']:.4g}")
    return "; ".join(parts)
