"""Check an exported folder against its certificate: are the files unchanged, does it still answer the same?

Of a folder without a certificate only the files are checked (`verify_files`).

    files        SHA-256 of each
    base         loaded from where it was; its fingerprint, all its weights, its settings
    adapters     likewise; for an exported adapter, the folder itself
    prompts, weights, logits, perplexity, classes     measured again, on the same rows

Files and fingerprints must be equal. Measurements may differ by TOLERANCE, or by what other kernels round
differently. Things that are gone are reported as not checked, and count neither way. A certificate has no
absolute paths: what it names is looked for where it says, beside the folder, and where the caller says.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft import storage
from graft.errors import GraftError, ModelError
from graft.models.files import find, quantisation, read_config
from graft.models.load import load, model_class
from graft.shipping.certificate import CERTIFICATE, QUANTISED, measured, versions
from graft.shipping.fidelity import NOISE
from graft.shipping.layouts import LAYOUTS
from graft.shipping.merge_ways import original_of
from graft.shipping.prompts import Prompts
from graft.shipping.provenance import whereabouts
from graft.shipping.verify_files import DIFFERS, SAME, UNKNOWN, Check, compared, verify_files
from graft.storage.written import unsealed

if TYPE_CHECKING:
    from graft.base.base import Base

TOLERANCE = 0.05  # of a measured difference
SHARE = {"weights": TOLERANCE, "logits": TOLERANCE, "perplexity": 1e-3}
SHAPE: dict[str, type] = {
    "format": str,
    "adapters": list,
    **dict.fromkeys(("base", "files", "versions", "prompts", "logits", "perplexity"), dict),
}
BASE = {"name", "fingerprint", "class", "family", "dtype", "quant", "group", "tokenizer"}
ADAPTER = {"name", "folder", "fingerprint"}
# (folder of a run, what a certificate says of its rows, base, adapter) -> these rows; None: they are gone
RowsOf = Callable[[Path, Mapping[str, Any], "Base", str | None], Prompts | None]


class Missing(Exception):
    """Something that a check needs is gone."""


def verify(
    folder: str | Path, *, base: str | Path | None = None, rows_of: RowsOf | None = None
) -> list[Check]:
    """Return all checks of a folder against its certificate; without one, of the digests that are in it.

    base: where the base is now, if the certificate does not lead there.  rows_of: reads the rows of a run
    (`graft.runs.own_rows.again`); without it answers on such rows are not checked.
    Raises UsageError for a folder of no kind that Graft writes or reads, ModelError for a damaged
    certificate.
    """
    folder = Path(folder)
    if not (folder / CERTIFICATE).is_file():
        return verify_files(folder)
    facts = _read(folder)
    checks = [_files(facts["files"], folder), _versions(facts["versions"])]
    if facts["format"] == QUANTISED:
        return [*checks, Check("measures", UNKNOWN, "a quantised folder is written without measuring it")]
    try:
        with (
            storage.as_they_are(),  # what was changed is measured, too
            _reopened(facts, folder, checks, base) as (trained, source, names),
            LAYOUTS[facts["format"]].read(folder, source) as reading,
        ):
            prompts = _rows(facts, folder, trained, names, rows_of)
            again = measured(source, reading, names, trained, prompts)
        checks += _compared(facts, again, trained)
    except Missing:
        checks.append(
            Check("measures", UNKNOWN, "weights, logits and perplexity need the base and its adapters")
        )
    except GraftError as error:
        checks.append(Check("measures", DIFFERS, f"the folder cannot be read: {error.given}"))
    return checks


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CERTIFICATE
    facts = unsealed(path.read_bytes())
    if facts is None or not _sound(facts):
        raise ModelError(f"{path} is damaged", "a certificate as Graft writes it", "export it again")
    return facts


def _sound(facts: dict[str, Any]) -> bool:
    """Return whether this is a certificate: nothing that is read here is missing or of another type."""
    if facts.get("format") == QUANTISED:
        return isinstance(facts.get("versions"), dict)
    if not all(isinstance(facts.get(key), kind) for key, kind in SHAPE.items()):
        return False
    parts = [(BASE, facts["base"]), *((ADAPTER, one) for one in facts["adapters"])]
    parts += [] if facts.get("added_to") is None else [(BASE, facts["added_to"])]
    described = all(isinstance(part, dict) and keys <= part.keys() for keys, part in parts)
    return described and facts["format"] in LAYOUTS and isinstance(facts["logits"].get("size"), float)


def _files(wanted: dict[str, str], folder: Path) -> Check:
    return compared("files", wanted, folder, {CERTIFICATE})


def _versions(wanted: dict[str, str]) -> Check:
    moved = [
        f"{name} {wanted.get(name)} -> {now}" for name, now in versions().items() if wanted.get(name) != now
    ]
    return Check("versions", UNKNOWN if moved else SAME, ", ".join(moved) or "unchanged")


@contextlib.contextmanager
def _reopened(
    facts: dict[str, Any], folder: Path, checks: list[Check], place: str | Path | None
) -> Iterator[tuple["Base", "Base", list[str]]]:
    """Yield (base trained on, base that the changes were added to, adapters), each checked on the way.

    Raises Missing if one of them is unavailable.
    """
    base = _base("base", facts["base"], checks, whereabouts(facts["base"], folder, place))
    names = [_adapter(base, wanted, facts, folder, checks) for wanted in facts["adapters"]]
    source = base
    if facts.get("added_to") is not None:
        try:
            source = original_of(base, names, whereabouts(facts["added_to"], folder))
        except GraftError as error:
            raise _missing("original", error, checks) from error
        checks.append(_same_base("original", source, facts["added_to"]))
    yield base, source, names


def _base(what: str, wanted: dict[str, Any], checks: list[Check], place: str) -> "Base":
    try:
        where = find(place)
        config = read_config(where)
        task = None if model_class(config, None).__name__ == wanted["class"] else wanted["family"]
        base = load(
            place,
            None if quantisation(where) else wanted["quant"],
            wanted["dtype"],
            task=task,
            group_size=wanted["group"],
        )
    except GraftError as error:
        raise _missing(what, error, checks) from error
    base.tokenizer = base.tokenizer if wanted["tokenizer"] else None
    checks.append(_same_base(what, base, wanted))
    return base


def _same_base(what: str, base: "Base", wanted: dict[str, Any]) -> Check:
    """Compare a base with what a certificate says of it; older ones say nothing of all its contents."""
    check = _fingerprint(what, base.fingerprint(), wanted, base.name)
    then = wanted.get("contents")
    if check.state != SAME or not isinstance(then, dict):
        return check
    changed = storage.changes(then, base.contents())
    return Check(what, DIFFERS, f"{base.name} is not what was exported: {changed}") if changed else check


def _adapter(
    base: "Base", wanted: dict[str, Any], facts: dict[str, Any], folder: Path, checks: list[Check]
) -> str:
    name, where = wanted["name"], str(folder) if facts["format"] == "peft" else wanted["folder"]
    if where is not None and facts["format"] != "peft":
        where = whereabouts({"name": where, "path": wanted.get("path")}, folder)
    if where is None:
        checks.append(Check("adapter", UNKNOWN, f"{name}: it had no folder when it was exported"))
        raise Missing
    try:
        adapter = base.load_adapter(where, name, force=True)
    except GraftError as error:
        raise _missing("adapter", error, checks) from error
    checks.append(_fingerprint("adapter", adapter.fingerprint(), wanted, f"{name} in {where}"))
    return str(name)


def _missing(what: str, error: GraftError, checks: list[Check]) -> Missing:
    remedy = "; --base says where it is" if what == "base" else ""
    checks.append(Check(what, UNKNOWN, error.given + remedy))
    return Missing()


def _fingerprint(what: str, fingerprint: str, wanted: dict[str, Any], where: str) -> Check:
    if fingerprint == wanted["fingerprint"]:
        return Check(what, SAME, f"{where}, {fingerprint[:12]}")
    return Check(
        what, DIFFERS, f"{where} is {fingerprint[:12]}, and {wanted['fingerprint'][:12]} was exported"
    )


def _rows(
    facts: dict[str, Any], folder: Path, base: "Base", names: list[str], rows_of: RowsOf | None
) -> Prompts | None:
    """Return the run's rows that a certificate was measured on; None: fixed texts, or they are gone."""
    said = facts["prompts"]
    if "run" not in said or rows_of is None:
        return None
    place = Path(whereabouts({"name": said["run"], "path": said.get("path")}, folder))
    found = rows_of(place, said, base, names[-1] if names else None)
    if found is None:
        return None
    return replace(found, source={key: said[key] for key in said if key not in ("rows", "tokens", "sha256")})


def _compared(facts: dict[str, Any], again: dict[str, Any], base: "Base") -> list[Check]:
    """Compare the measurements of then and now, as far as the rows are there."""
    share, unasked = dict(SHARE), list[Check]()
    if "run" in facts["prompts"] and "run" not in again["prompts"]:
        finding = f"rows of run {facts['prompts']['run']} are gone: logits and perplexity need them"
        share, unasked = {"weights": TOLERANCE}, [Check("prompts", UNKNOWN, finding)]
    elif again["prompts"] != facts["prompts"]:
        what = "the rows of the run" if "run" in facts["prompts"] else "graft's prompts"
        return [Check("prompts", DIFFERS, f"the tokenizer, or {what}, have changed: the ids differ")]
    rounding = NOISE * torch.finfo(base.dtype).eps
    fp32 = NOISE * torch.finfo(torch.float32).eps  # D itself is a product, summed in another order elsewhere
    slack = {"weights": fp32, "logits": rounding * facts["logits"]["size"], "perplexity": 0.0}
    share |= {"perplexity": max(rounding, 1e-3)} if "perplexity" in share else {}
    checks = unasked
    for what, slope in share.items():
        then, now = facts.get(what) or {}, again[what] or {}
        numbers = [key for key in then if isinstance(then[key], float)]
        moved = [key for key in numbers if not _near(then[key], now.get(key), slope, slack[what])]
        moved += [key for key in then if key not in numbers and key != "worst" and then[key] != now.get(key)]
        changes = ", ".join(f"{key} {_plain(then[key])} -> {_plain(now.get(key))}" for key in moved)
        values = ", ".join(f"{key} {then[key]:.3g}" for key in numbers)
        checks.append(Check(what, DIFFERS if moved else SAME, changes or values or "none"))
    if "classes" in facts and "classes" in again:
        then, now = facts["classes"], again["classes"]
        keys = ("same", "adapted", "written")
        moved = [key for key in keys if abs(then[key] - now[key]) > 1 + TOLERANCE * then["count"]]
        told = ", ".join(f"{key} {then[key]} -> {now[key]}" for key in moved)
        same = f"{now['same']} of {now['count']} as trained"
        checks.append(Check("classes", DIFFERS if moved else SAME, told or same))
    return checks


def _near(then: float, now: Any, share: float, slack: float) -> bool:
    return isinstance(now, float) and abs(now - then) <= share * abs(then) + slack


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
