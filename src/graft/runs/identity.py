"""What must be equal at every start of a run: its settings, its base, its rows, and adapters that it reads.

The same command in the same folder continues a run, or finds it finished. With anything else that would
change its steps, the folder belongs to another run, and that is refused before anything is written. Files
count by what they hold: folders of models, rows and adapters may be moved.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

from graft import storage
from graft.base.base import Base
from graft.data import Prepared
from graft.data.encode import Examples
from graft.errors import AdapterError, CheckpointError, UsageError, notice
from graft.recipe import Recipe, read
from graft.recipe.chain import stages_in
from graft.recipe.places import FILE, PLACES, place_of
from graft.training.checkpoint import same_run

# Settings that may differ between two starts of a run: they change speed, memory or what is written or said,
# not the steps.
FREE = (
    "output",
    "evaluate",
    "data.test",
    "data.pack",
    "stage.runaway",
    "stage.kl_limit",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.compile",
    "train.paged_budget_mb",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.samples",
    "train.sample_tokens",
    "train.report_to",
)
NOTABLE_S = 1.0  # seconds of reading a base, above which we say so
# Settings that name adapters, which count by what they hold: a folder may be moved, and trained anew.
ADAPTERS = ("adapter", "stage.rewards", "stage.judge")


def identity(recipe: Recipe, base: Base, prepared: Prepared) -> dict[str, Any]:
    """Return the identity of a run.  recipe: as it was given."""
    settings = _settings(recipe)
    held = {f"fingerprint of {key}": _held(settings.pop(key)) for key in ADAPTERS if key in settings}
    template = storage.encode(prepared.template) if prepared.template is not None else b""
    return {
        **settings,
        **{storage.PATH + PLACES[key]: place_of(where) for key, where in _places(_flat(recipe)).items()},
        **held,
        "fingerprint of the base": base.fingerprint(),
        "samples of the blocks of the base": base.origin(),
        "adapters merged into the base": [base.adapters[one.adapter].fingerprint() for one in base.merged],
        **_contents(base),
        "fingerprint of the training rows": _fingerprint(prepared.train),
        "fingerprint of the held-out rows": _fingerprint(prepared.eval),
        "fingerprint of the classes": hashlib.sha256(storage.encode(prepared.labels)).hexdigest(),
        "fingerprint of the template": hashlib.sha256(template).hexdigest(),
    }


def require_same_base(folder: Path, base: Base) -> None:
    """Raise AdapterError unless a run was trained on this base, with these weights and this config."""
    try:
        known = storage.read_record(folder / FILE) or {}
    except CheckpointError:
        return  # of an older Graft, or damaged: the adapter's own file says what it can
    if changed := storage.changes(known, _contents(base)):
        raise AdapterError(
            f"{base.name} is not the base that {folder} was trained on ({changed})",
            "the weights and the config.json of that time",
            f"restore them; or name the two yourself: {base.name} --adapter {folder / 'adapter'}",
        )


def _contents(base: Base) -> dict[str, Any]:
    """Return `Base.contents`, and say so where it took long."""
    began = time.perf_counter()
    found = base.contents()
    if (seconds := time.perf_counter() - began) > NOTABLE_S:
        again = "it is remembered while they stay as they are" if base.files else "as at every start"
        notice(f"the weights of {base.name} were read for their digest, which took {seconds:.1f} s: {again}")
    return found


def require_same_settings(folder: Path, chosen: Recipe) -> None:
    """Raise CheckpointError if the folder holds a run with different settings.

    They are those of its identity, if that is there: recipe.yaml may be damaged, and is written again.
    """
    if not (folder / "recipe.yaml").exists():
        return
    now, before, recorded = _settings(chosen), _before(folder), _recipe_in(folder)
    if not before and recorded is not None:
        before = _settings(recorded)
    for key in ADAPTERS if chosen.adapter is None else ("method", *ADAPTERS):
        now.pop(key, None)  # what an adapter is, and holds, is compared when it is loaded
    if "auto" in (now["dtype"], before.get("dtype")):  # a recipe that somebody put there, of no run yet
        del now["dtype"]
    same_run(folder, before, now)


def as_begun(chosen: Recipe) -> Recipe:
    """Return a recipe whose dtype is auto with the dtype of the run that its folder holds, if there is one.

    A run goes on in the number format it began with, also on a machine that would choose another.
    """
    folder = Path(chosen.output)
    if chosen.dtype != "auto" or not (folder / "recipe.yaml").exists():
        return chosen
    recorded = _recipe_in(folder)
    dtype = _before(folder).get("dtype", "auto") if recorded is None else recorded.dtype
    return chosen.model_copy(update={"dtype": dtype})


def _recipe_in(folder: Path) -> Recipe | None:
    """Return the recipe in a run's folder; None if there is none, or if it is damaged.

    Raises UsageError if the folder is that of several stages.
    """
    if not (folder / "recipe.yaml").exists():
        return None
    try:
        return read(folder)
    except UsageError as error:
        if _is_chain(folder):
            raise
        notice(f"{error.given}: it is written again, and the run compared with its other records")
        return None


def _is_chain(folder: Path) -> bool:
    try:
        return bool(stages_in(folder))
    except UsageError:  # damaged
        return False


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Note in a folder whose run it holds. Raises CheckpointError if another run has taken steps in it."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / "finished.json").exists() or any((folder / "checkpoints").glob("step-*"))
    if begun:
        same_run(folder, _before(folder), identity)
    storage.write_record(folder / FILE, identity)


def _before(folder: Path) -> dict[str, Any]:
    """Return the identity of the run in a folder; empty if it is not recorded, or the record is damaged.

    Checkpoints and the record of the end hold it too, and are compared when they are read.
    """
    try:
        return storage.read_record(folder / FILE) or {}
    except CheckpointError as error:
        notice(f"{error.given}: it is written again, and the run compared with its checkpoints")
        return {}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that must be equal when a run is resumed, by dotted key."""
    flat = _flat(recipe)
    apart = {*FREE, *_places(flat)}
    return {key: value for key, value in flat.items() if key not in apart}


def _places(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that name files which count by what they hold."""
    return {key: value for key in PLACES if isinstance(value := settings.get(key), str | list)}


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return all settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        grouped = key in ("data", "train") or (key == "stage" and isinstance(value, dict))
        flat |= {f"{key}.{k}": v for k, v in value.items()} if grouped else {key: value}
    return flat


def _held(named: Any) -> Any:
    """Return a setting that names adapters, with a hash of its content for the name of each one's folder."""
    if isinstance(named, dict):
        return {_held(name): value for name, value in named.items()}
    if isinstance(named, list | tuple):
        return [_held(name) for name in named]
    return _content(Path(named)) or named if isinstance(named, str) else named


def _content(path: Path) -> str | None:
    """Return a hash of the files of an adapter: weights and settings; None where there is no adapter.

    path: its folder, that of its run, or one file.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    files = [folder] if folder.is_file() else sorted(f for f in folder.glob("adapter*") if f.is_file())
    parts = "".join(f"{file.name} {storage.digest(file)} " for file in files)
    return hashlib.sha256(parts.encode()).hexdigest() if files else None


def _fingerprint(rows: Examples | None) -> str | None:
    """Return a hash of all that examples teach: tokens, which are learnt, classes and other parts."""
    if rows is None:
        return None
    digest = hashlib.sha256()
    for block in rows.learnt.blocks():
        digest.update(block)
    for column in (rows.ids, *(rows.parts[name] for name in sorted(rows.parts))):
        for block in column.values.blocks():
            digest.update(block)
        digest.update(column.ends)
    digest.update(rows.targets)
    return digest.hexdigest()
