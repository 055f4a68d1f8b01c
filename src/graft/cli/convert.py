"""graft convert: turn a fully tuned model, or an old loralib pickle, into an adapter folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, show_json, talk
from graft.errors import UsageError
from graft.sizes import size_of


def add_to(app: typer.Typer) -> None:
    app.command("convert", help="Turn a fully tuned model, or a loralib file, into an adapter.")(convert)


def convert(
    source: Annotated[
        str, typer.Argument(help="A fully tuned model, or a file (.bin, .pt) in loralib layout.")
    ],
    folder: Annotated[Path, typer.Argument(help="The adapter folder to write.")],
    base: Annotated[str, typer.Option("--base", help="The model it was tuned from.")] = "",
    r: Annotated[
        int | None, typer.Option("--r", help="Tuned model: rank of each layer, by default 16.")
    ] = None,
    energy: Annotated[float | None, typer.Option(help="Tuned model: keep this share of each change.")] = None,
    rest: Annotated[
        str, typer.Option(help="Changed norms, biases, embeddings: 'name' or 'keep' them.")
    ] = "name",
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Loralib file: its lora_alpha, which is not in it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    """Turn a tuned model into the LoRA nearest to its changes, layer by layer; or read a loralib pickle.

    A pickle can run code when it is read: graft reads its weights only, in a separate process with limits.
    """
    pickled = Path(source).is_file()
    _check(source, pickled, base, alpha, for_tuned=bool(r or energy or rest != "name"))
    if pickled and alpha is not None:
        facts = _unpickle(source, folder, base, alpha, force)
    else:
        facts = _extract(source, folder, base, r=r, energy=energy, rest=rest, force=force)
    if json:
        show_json({"folder": str(folder), **facts})
    else:
        show(f"wrote   {folder} ({size_of(folder)})")
    after(f"graft chat {base or 'MODEL'} --adapter {folder}")


def _check(source: str, pickled: bool, base: str, alpha: float | None, *, for_tuned: bool) -> None:
    """Raise UsageError for options that are missing, or that belong to the other kind of source."""
    if pickled and for_tuned:
        raise UsageError(
            f"--r, --energy or --rest with the file {source}",
            "these with a tuned model only",
            "leave them out",
        )
    if pickled and alpha is None:
        raise UsageError(
            f"{source} without --alpha",
            "the lora_alpha of its training",
            "add --alpha; the official files used 16",
        )
    if not pickled and alpha is not None:
        raise UsageError(
            f"--alpha with {source}, which is not a file",
            "--alpha with a loralib file only",
            "check the path",
        )
    if not pickled and not base:
        raise UsageError(f"{source} without --base", "the model that it was tuned from", "add --base MODEL")


def _unpickle(source: str, folder: Path, base: str, alpha: float, force: bool) -> dict[str, Any]:
    from graft.formats import loralib  # torch costs seconds

    summary = loralib.convert(source, folder, lora_alpha=alpha, base=base or None, force=force)
    talk(summary)
    return {"said": summary}


def _extract(source: str, folder: Path, base: str, *, rest: str, force: bool, **size: Any) -> dict[str, Any]:
    from graft.combine.extract import difference
    from graft.models.tokenizer import tokenizer_in
    from graft.runs.open import base_as_stored
    from graft.shipping.export import export  # torch costs seconds
    from graft.storage import refuse_occupied

    refuse_occupied(folder, force=force)  # before the work
    frozen = base_as_stored(base)
    if (Path(source) / "tokenizer_config.json").exists():
        frozen.tokenizer = tokenizer_in(source)  # with the template of the tuning

    def tell(site: str, layer: Any) -> None:
        talk(f"layer   {site}   r {len(layer.A)}   {layer.kept:.1%} of its change kept")

    extracted = difference(frozen, source, on_layer=tell, **size)
    adapter = extracted.attach("extracted", rest)
    export(frozen, folder, "peft", adapter=adapter.name, force=force)
    changed = f"what changed in {len(extracted.layers)} layers"
    talk(f"kept    {extracted.kept:.1%} of {changed}, in {adapter.count():,} numbers")
    left = [*(extracted.rest if rest == "name" else ()), *extracted.foreign]
    if left:
        talk(
            f"left    {len(left)} changed tensors: {', '.join(left)}   (--rest keep: keep those of the base)"
        )
    layers = {
        site: {"r": len(layer.A), "kept": layer.kept, "norm": layer.norm}
        for site, layer in extracted.layers.items()
    }
    return {"kept": extracted.kept, "layers": layers, "rest": rest, "left": left}
