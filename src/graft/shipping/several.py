"""Export every adapter of a folder, each into a folder of its own, with one page on how to serve them all.

    FOLDER/NAME/      what exporting that adapter alone writes, with its certificate
    FOLDER/README.md  the commands for all of them
    FOLDER/NAME.Modelfile   of GGUF adapters, on one file of the base in FOLDER

Adapters are loaded one after the other, so hundreds take the memory of one. Those that do not fit the layout
or the base are left out and named.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, UsageError, notice, one_of
from graft.models.tokenizer import tokenizer_in
from graft.shipping import instructions, provenance, vllm
from graft.shipping.card import Use, write_card
from graft.shipping.export import LAYOUTS, export
from graft.shipping.factors import rank_of
from graft.shipping.gguf import file_name
from graft.shipping.origin import Origin
from graft.storage import output_folder

if TYPE_CHECKING:
    from graft.base.base import Base

OriginOf = Callable[[str], Origin | None]


@dataclass
class Several:
    """What came of it.

    folder: with a folder for each.  written: the names, each with the largest rank, 0 if it has none.
    left_out: why, by name.  trained_on: how the base was stored while they were trained.
    """

    folder: Path
    written: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    trained_on: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(self.written.values())


def export_each(
    base: "Base",
    folder: str | Path,
    to: str,
    adapters: Mapping[str, Path],
    *,
    origin_of: OriginOf | None = None,
    force: bool = False,
) -> Several:
    """Write every adapter into a folder of its own below `folder`.

    to: a layout of an adapter alone.  adapters: their folders by name.  origin_of: the run that an adapter
    on the base comes from.
    Raises UsageError for another layout, and if none can be written; what `export` does for the rest.
    """
    if not LAYOUTS[one_of("to", to, LAYOUTS)].adapter_alone:
        alone = ", ".join(name for name, layout in LAYOUTS.items() if layout.adapter_alone)
        raise UsageError(f"to={to!r} with several adapters", f"one of {alone}", "export one adapter, merged")
    with output_folder(Path(folder), force=force) as partial:
        done, tokenizer = Several(Path(folder)), base.tokenizer
        for name, place in adapters.items():
            try:
                adapter = base.load_adapter(place, name)
            except GraftError as error:
                done.left_out[name] = error.given
                continue
            try:
                if (place / "tokenizer_config.json").is_file():
                    base.tokenizer = tokenizer_in(place)  # with the template of training
                origin = origin_of(name) if origin_of else None
                export(base, partial / name, to, adapter=name, origin=origin)
                done.written[name] = rank_of(adapter)
                done.trained_on.append(adapter.trained_on)
            except UsageError as error:
                done.left_out[name] = error.given
            finally:
                base.tokenizer = tokenizer
                base.detach(name)
        if not done.written:
            name, reason = next(iter(done.left_out.items()))
            raise UsageError(
                f"none of {len(adapters)} adapters can go out as {to}; {name}: {reason}",
                "an adapter that fits",
                "merge what can be merged (graft export RUN OUT), or serve all of them with graft serve",
            )
        _write_page(base, partial, to, done)
    for name, reason in done.left_out.items():
        notice(f"{name} is left out: {reason}")
    return done


def commands(base: str, to: str, done: Several, inside: str = ".") -> list[Use]:
    """Return how to serve all of them, with their folders inside this one.  base: where it lies."""
    places = {name: f"{inside}/{name}" for name in done.written}
    graft = Use("With Graft", f"graft serve {base} --adapters {inside}")
    if to == "vllm":
        return [
            Use("With vLLM", vllm.command(base, places, done.rank, done.trained_on)),
            Use("With SGLang", vllm.command_of_sglang(base, places)),
            graft,
        ]
    if to == "peft":
        return [graft]
    create = [f"ollama create {shlex.quote(name)} -f {shlex.quote(f'{name}.Modelfile')}" for name in places]
    # Of scale 0, so that no adapter answers unasked; the option is taken once, with all of them.
    loras = ",".join(f"{place}/{name}-lora.gguf:0" for name, place in places.items())
    line = f"llama-server -m {base} \\\n  --lora-scaled {shlex.quote(loras)}"
    return [Use("With llama.cpp", line), Use("With Ollama, a model for each", "\n".join(create))]


def _write_page(base: "Base", folder: Path, to: str, done: Several) -> None:
    """Write README.md, and of GGUF adapters the Modelfiles."""
    place = file_name(base, "f16") if to == "gguf-lora" else instructions.tokenizer_place(base)
    many = "1 adapter" if len(done.written) == 1 else f"{len(done.written)} adapters"
    names = ", ".join(f"`{name}`" for name in done.written)
    summary = (
        f"{many} for `{provenance.public_name(base)}`, each in a folder of its name: {names}. The base is "
        "not here. The lines run in this folder."
    )
    notes = vllm.notes(done.trained_on) if to == "vllm" else []
    if to == "gguf-lora":
        notes.append(
            f"`{place}` is the base as a GGUF file: `graft export BASE OUT --to gguf --type f16` writes it. "
            "Put it into this folder."
        )
        numbers = ", ".join(f"{number} is `{name}`" for number, name in enumerate(done.written))
        notes.append(f"Requests to llama-server name an adapter by its number: {numbers}.")
        for name in done.written:
            adapter = f"./{name}/{name}-lora.gguf"
            instructions.write_modelfile(base, folder, f"./{place}", adapter, file=f"{name}.Modelfile")
    notes += [f"`{name}` is left out: {reason}" for name, reason in done.left_out.items()]
    about: dict[str, Any] = {"library": "gguf" if to == "gguf-lora" else "peft", "relation": "adapter"}
    write_card(base, folder, done.folder.name, summary, commands(place, to, done), notes=notes, **about)
