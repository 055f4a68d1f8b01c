"""Open anything a command accepts (run, adapter, model, hub id, "seedling") as a base that is ready to answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.base.base import Base
from graft.errors import UsageError
from graft.evaluate import answers
from graft.models.files import read_config
from graft.models.load import DTYPES, load
from graft.models.tokenizer import tokenizer_in
from graft.recipe import Recipe, read
from graft.runs.build import load_base


@dataclass
class Opened:
    """base with its adapters; adapter: the name that answers, None for the bare base.  recipe, folder: of a run."""

    base: Base
    adapter: str | None = None
    recipe: Recipe | None = None
    folder: Path | None = None
    by_template: bool = False

    def ask(self, prompts: Sequence[str], **how: Any) -> list[str]:
        """Answers to plain texts, asked in the way that the model was trained with."""
        return reply(self.base, [asked(p, self.by_template) for p in prompts], self.adapter, **how)


def asked(text: str, by_template: bool) -> str | list[dict[str, str]]:
    """A prompt for `Base.generate`: a conversation of one turn, or the text as it is."""
    return [{"role": "user", "content": text}] if by_template else text


def reply(base: Base, prompts: Sequence[Any], adapter: str | None, **how: Any) -> list[str]:
    """What the model writes to each prompt; of an adapter with a task head, what that tells of each text.

    prompts: as `asked` gives them.  how: keywords of `Base.generate`.
    """
    if adapter is None or base.adapters[adapter].head is None:
        return base.generate(prompts, adapters=[adapter] * len(prompts), **how)
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return answers(base, texts, [adapter] * len(texts))


def open_model(name: str, adapters: Sequence[str] = (), quant: str | None = None) -> Opened:
    """A run's folder (with its adapter), an adapter's folder (with its base), or a model.

    adapters: folders, or NAME=FOLDER; the last one answers.  quant: how to store the base; a run has its own.
    """
    folder = Path(name)
    if (folder / "recipe.yaml").exists() and not (folder / "config.json").exists():
        opened = _open_run(folder, quant)
    elif (folder / "adapter_config.json").exists():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise UsageError(
                f"{name} names no base", "an adapter that does", f"give the base, and --adapter {name}"
            )
        opened = Opened(load(str(base), quant=quant))
        adapters = [*adapters, name]
    else:
        opened = Opened(load(name, quant=quant))
    for word in adapters:
        label, _, path = word.rpartition("=")
        path = str(Path(path) / "adapter") if (Path(path) / "adapter").is_dir() else path  # a run's folder
        label = label or _label(Path(path))
        opened.base.load_adapter(path, label)
        opened.adapter = label
    if opened.recipe is None:
        opened.by_template = bool(getattr(opened.base.tokenizer, "chat_template", None))
    return opened


def _label(folder: Path) -> str:
    """A name for an adapter: its folder's, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _open_run(folder: Path, quant: str | None) -> Opened:
    recipe = read(folder)
    if not (folder / "adapter" / "adapter_config.json").exists():
        raise UsageError(
            f"{folder} has no adapter yet", "a run that has finished", f"go on with: graft train {folder}"
        )
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    by_template = bool(report.get("asks_by_template"))
    if recipe.fresh:
        return Opened(
            load(folder / "model", quant=quant, dtype=recipe.dtype), None, recipe, folder, by_template
        )
    base = load_base(recipe, quant)
    base.load_adapter(folder / "adapter", folder.resolve().name)
    if (folder / "adapter" / "tokenizer_config.json").exists():
        base.tokenizer = tokenizer_in(folder / "adapter")  # with the template of training
    return Opened(base, folder.resolve().name, recipe, folder, by_template)


def base_as_stored(name: str) -> Base:
    """A base in the dtype of its file, where rounding must not look like a change."""
    stored = read_config(name).dtype
    return load(name, "none", dtype=next((word for word, dtype in DTYPES.items() if dtype == stored), "fp32"))
