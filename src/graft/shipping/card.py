"""Write the model card of an export, README.md: front matter that the Hugging Face hub reads, and its use.

What is not known is left out. Names are those that others may know (`provenance`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import graft
from graft.shipping import provenance
from graft.shipping.origin import Origin

if TYPE_CHECKING:
    from graft.base.base import Base

CARD = "README.md"
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
LONGEST = 100_000  # characters of a card that are read
# What the hub calls a model's task, by family.
PIPELINES = {"causal": "text-generation", "masked": "fill-mask", "encoder": "feature-extraction"}


@dataclass(frozen=True)
class Use:
    """A way to use an export: what it is for, and the lines that do it.  language: of the lines."""

    title: str
    lines: str
    language: str = "sh"


def write_card(
    base: "Base",
    folder: Path,
    title: str,
    summary: str,
    uses: Sequence[Use],
    *,
    library: str,
    relation: str,
    tags: Sequence[str] = (),
    pipeline: str | None = None,
    origin: Origin | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write README.md into a folder.

    library: that loads it, in the hub's words.  relation: to its base: adapter, finetune or quantized.
    pipeline: the hub's word for its task, by default that of the base's family.
    """
    pipeline = pipeline or PIPELINES.get(base.family)
    front = {
        "base_model": provenance.public_name(base),
        "base_model_relation": relation,
        "library_name": library,
        "license": licence(base),
        "pipeline_tag": pipeline,
        "datasets": list(origin.datasets) if origin else None,
        "tags": ["graft", *tags],
        "model-index": _results(title, origin, pipeline),
    }
    said = {key: value for key, value in front.items() if value}
    text = ["---", yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    text += [f"# {title}", "", summary, "", *_facts(base, origin)]
    for use in uses:
        text += [f"## {use.title}", "", f"```{use.language}", use.lines, "```", ""]
    told = [*notes, *([embedded()] if base.name == provenance.EMBEDDED else [])]
    text += ["## Notes", "", *(f"- {note}" for note in told), ""] if told else []
    (folder / CARD).write_text("\n".join(text), encoding="utf-8")


def embedded() -> str:
    """Return what one must know of an export whose base is the embedded model."""
    return (
        "`seedling` is the model inside Graft. No other tool knows that name: where one needs the base, "
        "`graft export seedling seedling --to hf` writes it as an ordinary folder."
    )


def licence(base: "Base") -> str | None:
    """Return the licence of a base, as its model card or its settings name it; None where they do not."""
    if base.name == provenance.EMBEDDED:
        return "apache-2.0"
    for folder in _folders(base):
        named = _front_matter(folder / CARD).get("license")
        if isinstance(named, str) and named.strip():
            return named.strip()
    named = getattr(base.model.config, "license", None)
    return named if isinstance(named, str) and named else None


def _folders(base: "Base") -> list[Path]:
    """Return the folders that a base was loaded from."""
    places = [Path(base.name), *(file.parent for file in base.files)]
    return list(
        dict.fromkeys(place if place.is_dir() else place.parent for place in places if place.exists())
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the front matter of a card; nothing of one that cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = FRONT.match(file.read(LONGEST))
        facts = yaml.safe_load(found[1]) if found else {}
    except (OSError, yaml.YAMLError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _facts(base: "Base", origin: Origin | None) -> list[str]:
    """Return a table of what is known of the base and of the training."""
    rows: dict[str, str | None] = {
        "base": f"`{provenance.public_name(base)}`",
        "revision of the base": provenance.revision(base),
        "licence of the base": licence(base),
        "fingerprint of the base": f"`{base.fingerprint()[:16]}`",
    }
    if origin is not None:
        rows |= origin.training
        rows["data"] = ", ".join(f"`{name}`" for name in origin.data)
        if origin.scored and origin.scores:
            rows["scored on"] = origin.scored
    rows["made by"] = f"graft {graft.__version__}, {datetime.now(UTC).date().isoformat()}"
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value), ""]
    return table + (_scores(origin.scores) if origin and origin.scores else [])


def _scores(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the scores as a table, a metric a line."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [f"| metric | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in names:
        cells = (f"{column[name]:.4g}" if name in column else "-" for column in columns.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _results(title: str, origin: Origin | None, pipeline: str | None) -> list[dict[str, Any]] | None:
    """Return the scores of the trained model as the hub's model-index has them."""
    if origin is None or not origin.scores or not origin.data or pipeline is None:
        return None
    trained = list(origin.scores.values())[-1]
    data = origin.data[0]
    metrics = [{"type": name, "name": name, "value": round(value, 6)} for name, value in trained.items()]
    result = {"task": {"type": pipeline}, "dataset": {"name": data, "type": data}, "metrics": metrics}
    return [{"name": title, "results": [result]}]
