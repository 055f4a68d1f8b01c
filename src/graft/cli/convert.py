"""graft convert: turn a fully tuned model, or an adapter in an old pickle, into an adapter folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, show_json, talk
from graft.cli.wait import begin
from graft.errors import UsageError
from graft.sizes import size_of
from graft.storage import refuse_occupied


def add_to(app: typer.Typer) -> None:
    app.command("convert", help="Turn a tuned model, or an old pickled adapter, into an adapter.")(convert)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A fully tuned model, an adapter folder with a .bin, or a loralib file (.bin, .pt)."
        ),
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
    """Turn a tuned model into the LoRA nearest to its changes, layer by layer; or read a pickled adapter.

    A pickle can run code when it is read: graft reads its weights only, in a separate process with limits.
    """
    refuse_occupied(folder, force=force)  # before the work
    for_tuned = bool(r or energy or rest != "name")
    begin(f"reading {source}")
    legacy, pickled = _legacy(source, for_tuned=for_tuned), Path(source).is_file()
    if legacy is None:
        _check(source, pickled, base, alpha, for_tuned=for_tuned)
    if legacy is not None:
        facts = _rewrite(legacy, folder, alpha, force)
    elif pickled and alpha is not None:
        facts = _unpickle(source, folder, base, alpha, force)
    else:
        facts = _extract(source, folder, base, r=r, energy=energy, rest=rest, force=force)
    if json:
        show_json({"folder": str(folder), **facts})
    else:
        show(f"wrote   {folder} ({size_of(folder)})")
    after(f"graft chat {base or 'MODEL'} --adapter {folder}")


def _legacy(source: str, *, for_tuned: bool) -> Path | None:
    """Return the pickle of an adapter that has its settings beside it, or None."""
    from graft.formats.legacy import pickled_in  # torch costs seconds

    found = pickled_in(source)
    if found is not None and for_tuned:
        raise UsageError(
            f"--r, --energy or --rest with the adapter {source}",
            "these with a tuned model only",
            "leave them out",
        )
    return found


def _rewrite(pickle: Path, folder: Path, alpha: float | None, force: bool) -> dict[str, Any]:
    from graft.formats import legacy

    stated = legacy.settings_of(pickle).get("lora_alpha")
    if alpha is not None and alpha != stated:
        raise UsageError(
            f"--alpha {alpha:g} with {pickle}, whose settings say lora_alpha={stated}",
            "the settings that lie beside the file",
            "leave --alpha out",
        )
    summary = legacy.convert(pickle, folder, force=force)
    talk(summary)
    return {"said": summary}


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

    frozen = base_as_stored(base)
    if (Path(source) / "tokenizer_config.json").exists():
        frozen.tokenizer = tokenizer_in(source)  # with the template of the tuning

    def tell(site: str, layer: Any) -> None:
        talk(f"layer   {site}   r {len(layer.A)}   {layer.kept:.1%} of its change kept")

    extracted = difference(frozen, source, on_layer=tell, **size)
    adapter = extracted.attach("extracted", rest)
    export(frozen, folder, "peft", adapter=adapter.name, force=force)
    changed = f"what changed in {len(extracted.layers)} layers"
    talk(f"kept    {extracted.kept:.1%} of {changed}, in {adapter.count():,} parameters")
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
