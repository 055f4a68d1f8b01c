"""Adapter checks: what the file of a stranger must be before a word or number of it is used."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.core import registry
from graft.core.schema import misfits, schema_of, shown, type_of
from graft.core.site import Site
from graft.errors import AdapterError, UsageError
from graft.formats import tensor_header
from graft.formats.peft import CONFIG, Settings, Tensors

FEWEST = 4096  # tensors that a file may hold on any base
BY_MODULE = 4  # and by module of the base: factors, a magnitude, a bias
NAME_BYTES = 256  # of adapter_config.json, for each tensor that there may be
CONFIG_BYTES = 2**20  # and for all else
HOSTILE = "this file is damaged or hostile: do not use it"
LARGEST = 3.4028234663852886e38  # in fp32
# Settings that are read of every config, whatever its method.
COMMON = {
    "peft_type": type_of("str | None"),
    "task_type": type_of("str | None"),
    "target_modules": type_of("str | tuple[str, ...] | None"),
    "modules_to_save": type_of("tuple[str, ...] | None"),
}
BASE = dict.fromkeys(("name", "fingerprint", "origin", "quant", "task_type"), type_of("str | None"))


def most(sites: Sequence[Site]) -> int:
    """Return how many tensors, or names, an adapter of this base may have."""
    modules = sum(1 for _ in sites[0].root.modules())
    experts = sum(3 * site.experts for site in sites if site.kind == "parameter" and site.experts > 1)
    return max(FEWEST, BY_MODULE * (modules + experts))


def check_files(folder: Path, weights: str, sites: Sequence[Site]) -> None:
    """Raise AdapterError for files that are too large to be those of an adapter of this base."""
    count = most(sites)
    limit = CONFIG_BYTES + count * NAME_BYTES
    size = (folder / CONFIG).stat().st_size
    if size > limit:
        raise AdapterError(
            f"{folder / CONFIG} has {size:,} bytes", f"at most {limit:,} for this base", HOSTILE
        )
    of = f"{BY_MODULE} for each module of this base" if count > FEWEST else "this base has few modules"
    tensor_header.check(folder / weights, count, of)


def check_config(folder: Path, config: Any, facts: Any) -> None:
    """Raise AdapterError or UsageError unless these are objects of JSON in parts that readers understand."""
    parts, named, base = [config], [], {}
    if isinstance(config, dict) and "methods" in config:
        parts += _listed(config["methods"])
    if isinstance(facts, dict):
        named, base = _listed(facts.get("methods", [])), facts.get("base", {})
    for part in (facts, base, *parts, *named):
        if not isinstance(part, dict):
            raise AdapterError(
                f"{folder} holds {shown(part)} where settings belong", "settings by name", HOSTILE
            )
    for part in parts:
        require(part, COMMON)
    for part in named:
        require(part, {"name": str})
        if part.get("name") not in registry.names():
            raise AdapterError(
                f"{folder} is of the method {shown(part.get('name'))}",
                f"one of {', '.join(registry.names())}",
                "read it with the version of Graft that wrote it",
            )
    require(base, BASE)


def _listed(value: Any) -> list[Any]:
    """Return a list as it is; what is none stands in one, where it is no settings."""
    return value if isinstance(value, list) else [[value]]


def require(given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise UsageError for settings that are of another type, or out of range."""
    wrong = misfits(kinds, given)
    if wrong:
        raise UsageError(
            ", ".join(f"{name}={shown(given[name])}" for name in wrong),
            "; ".join(f"{name}: {kind}" for name, kind in wrong.items()),
            "correct them",
        )


def stated(cls: type, given: Settings, sites: Sequence[Site]) -> Settings:
    """Return settings of a method without its own that are None: PEFT writes them for what is left out.

    Raises UsageError for settings that are of another type, out of range or of too many entries.
    """
    kinds, count = schema_of(cls), most(sites)
    said = {name: value for name, value in given.items() if value is not None or name not in kinds}
    require(said, kinds)
    for name in said.keys() & kinds.keys():
        entries = said[name] if isinstance(said[name], list | dict) else ()
        if len(entries) > count and not all(isinstance(entry, int) for entry in entries):  # ids may be many
            raise UsageError(f"{name} with {len(entries):,} entries", f"at most {count:,}", "name fewer")
    return said


def require_range(tensors: Tensors, folder: Path) -> None:
    """Raise AdapterError for numbers in 64 bits that 32 bits do not hold."""
    large = [k for k, t in tensors.items() if t.dtype.itemsize == 8 and t.is_floating_point() and t.numel()]
    for key in large:
        if tensors[key].abs().amax() > LARGEST:
            raise AdapterError(
                f"{folder}: {key} holds numbers that 32 bits do not", f"numbers up to {LARGEST:.1e}", HOSTILE
            )


@contextlib.contextmanager
def of_a_file(folder: str | Path) -> Iterator[None]:
    """Turn complaints about arguments, which came from a file here, into AdapterErrors that name it."""
    try:
        yield
    except UsageError as error:
        raise AdapterError(
            f"{folder}: {error.given}",
            error.expected,
            "load the base that it was trained on, or copy it again from where it came",
        ) from error
