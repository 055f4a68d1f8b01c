"""Targets: the choice of sites that most methods share, under PEFT's names, and what is trained with them.

A name matches as in PEFT: a string is a regular expression for the whole name, a tuple holds names or their
last parts.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from graft.core.file_layout import FileLayout
from graft.core.method import Method
from graft.core.part import Part, Seats
from graft.core.schema import STEEPEST, Names, Numbers
from graft.core.site import Site
from graft.errors import SiteError, UsageError, nearest, one_of
from graft.layers.patterns import first_at_end, whole
from graft.layers.replacements import Replacement, Shift
from graft.layers.tied import TiedReplacement
from graft.layers.token_rows import Rows
from graft.layers.unmatched import say_idle, say_idle_patterns, say_unmatched

# Inserts that a targeted method puts elsewhere than at its targets.
BESIDE = (Shift, Replacement, TiedReplacement, Rows)


class TargetedFiles(FileLayout):
    """PEFT's config.

    A list of targets is written as it was given, any other choice as the names it matched.
    """

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        config = super().describe(method, part)
        seats = [(s, insert) for s, insert in part.inserts if s.kind != "parameter"]
        sites = [site for site, insert in seats if not isinstance(insert, BESIDE)]
        by_name = not isinstance(method.target_modules, str)
        if not by_name or method.exclude_modules or method.layers_to_transform is not None:
            config["target_modules"] = sorted(site.name for site in sites)
        for key in ("exclude_modules", "modules_to_save"):
            if key in config:
                config[key] = config[key] or None
        if config.get("modules_to_save") and part.inserts:
            saved = [site.name for site, insert in part.inserts if isinstance(insert, Replacement)]
            modules = [name for name, _ in part.inserts[0][0].root.named_modules()]
            if any(ends_inside(name, module) for name in config["modules_to_save"] for module in modules):
                config["modules_to_save"] = sorted(saved)  # PEFT would train further modules
        return config | {"fan_in_fan_out": any(site.transposed for site in sites)}


class NamedFiles(TargetedFiles):
    """Targets by full name: PEFT would match an expression against modules of every kind."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        names = sorted(site.name for site, _ in part.inserts)
        return super().describe(method, part) | {"target_modules": names}


@dataclass(frozen=True, kw_only=True)
class Targeted(Method):
    """Base class of methods that put one insert at each projection they are pointed at."""

    # names or their last parts; a string is a regular expression
    target_modules: str | Names = "all-linear"
    exclude_modules: str | Names = ()  # taken out of the targets, same rule
    layers_to_transform: Numbers | int | None = None  # only these blocks
    # name of the list of blocks, where a model has several
    layers_pattern: str | Names | None = None
    modules_to_save: Names = ()  # modules trained in full, such as embed_tokens or lm_head

    kinds: ClassVar[tuple[str, ...]] = ("linear", "head")
    files: ClassVar = TargetedFiles()
    patterns: ClassVar[tuple[str, ...]] = ()  # settings that give values by the names of targets

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        places = [site for site in sites if site.kind in self.kinds]
        named = [site for site in places if self._named(site)]
        if not named:
            raise no_such_site(self.target_modules, places)
        chosen = [site for site in named if not self._left_out(site)]
        if not chosen:
            raise self._nothing_left(named)
        self._say_unmatched(sites, places, named, chosen)
        return chosen

    def assemble(self, sites: Sequence[Site]) -> Seats:
        return [(site, self.build(site)) for site in self.targets(sites)] + self.replacements(sites)

    def replacements(self, sites: Sequence[Site]) -> Seats:
        """Return trained copies of `modules_to_save`."""
        seats: Seats = []
        for name in self.modules_to_save:
            inside = [
                s for s in sites if s.kind in ("linear", "norm", "head", "embed") and _within(s.name, name)
            ]
            if not inside:
                raise no_such_site(name, [s for s in sites if s.kind != "module"])
            seats += [(site, Replacement(site)) for site in inside]
        return seats

    def _named(self, site: Site) -> bool:
        if self.target_modules == "all-linear":
            return site.kind == "linear"
        return matches(site.name, self.target_modules)

    def _left_out(self, site: Site) -> bool:
        return (
            matches(site.name, self.exclude_modules or ())
            or matches(site.name, self.modules_to_save)
            or not self._in_layers(site)
        )

    def _in_layers(self, site: Site) -> bool:
        if self.layers_to_transform is None:
            return True
        if site.layer not in self._layers():
            return False
        patterns = self._lists()
        return not patterns or any(_in_list(site, pattern) for pattern in patterns)

    def _layers(self) -> tuple[int, ...]:
        wanted = self.layers_to_transform
        return (wanted,) if isinstance(wanted, int) else tuple(wanted or ())

    def _lists(self) -> tuple[str, ...]:
        wanted = self.layers_pattern
        return (wanted,) if isinstance(wanted, str) else tuple(wanted or ())

    def _nothing_left(self, named: Sequence[Site]) -> SiteError:
        """Return the error for targets of which other settings leave none."""
        settings = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
        given = [f"{name}={getattr(self, name)!r}" for name in settings if getattr(self, name)]
        given += ["layers_to_transform=0"] if self.layers_to_transform == 0 else []
        layers = sorted({site.layer for site in named if site.layer is not None})
        numbers = f"; their blocks are {layers[0]} to {layers[-1]}" if layers else ""
        return SiteError(
            f"target_modules={_shown(self.target_modules)!r} with {', '.join(given)} leaves no target",
            f"at least one of the {len(named)} sites that target_modules names{numbers}",
            "change what is left out",
        )

    def _say_unmatched(
        self, sites: Sequence[Site], places: Sequence[Site], named: Sequence[Site], chosen: Sequence[Site]
    ) -> None:
        """Give notices of all entries of the settings here that have no effect on this model."""
        if not isinstance(self.target_modules, str):
            names = [site.name for site in places]
            of = f"the sites that {self.name()} can go to"
            say_unmatched("target_modules", self.target_modules, names, matches, of)
        everywhere = [site.name for site in sites]
        say_unmatched(
            "exclude_modules", self.exclude_modules or (), everywhere, matches, "the sites of this model"
        )
        there = {site.layer for site in named}
        say_idle(
            "layers_to_transform",
            [layer for layer in self._layers() if layer not in there],
            "are blocks without a target here",
        )
        missing = [p for p in self._lists() if not any(_in_list(site, p) for site in named)]
        say_idle("layers_pattern", missing, "match no list of blocks with a target")
        if self.layers_to_transform is None:
            say_idle("layers_pattern", self._lists(), "have no effect without layers_to_transform")
        for setting in self.patterns:
            values = getattr(self, setting)
            say_idle_patterns(setting, values, [first_at_end(values, site.name) for site in chosen])


@dataclass(frozen=True, kw_only=True)
class Accompanied(Targeted):
    """A targeted method that may also train biases of the base."""

    bias: str = "none"  # biases of the base that are trained too: none, those of the targets (NAME_only), all

    def __post_init__(self) -> None:
        check_bias(self.bias, f"{self.files.peft_type.lower()}_only")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats = [(site, self.build(site)) for site in self.targets(sites)]
        return seats + biases(self.bias, sites, seats) + self.replacements(sites)


def biases(bias: str, sites: Sequence[Site], seats: Seats) -> Seats:
    """Return inserts that train the base's own biases.

    bias: "none", "all", or another word for those at the sites of `seats`.
    """
    if bias == "none":
        return []
    taken = {site.name for site, _ in seats}
    owners = [s for s in sites if s.kind in ("linear", "norm", "head") and isinstance(s.bias(), torch.Tensor)]
    return [
        (site, Shift(site, "base_layer.bias" if site.name in taken else "bias"))
        for site in owners
        if bias == "all" or site.name in taken
    ]


def by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the first key that, as a regular expression, matches the end of the name."""
    key = first_at_end(patterns, name)
    return default if key is None else patterns[key]


def scale_from(alpha: float, r: float, *, root: bool = False) -> float:
    """Return alpha / r, or alpha / √r.  Raises UsageError for what no training makes."""
    scale = alpha / math.sqrt(r) if root else alpha / r
    if abs(scale) > STEEPEST:
        raise UsageError(
            f"lora_alpha={alpha:g} with r={r} scales the update by {scale:g}",
            f"a scale up to {STEEPEST:g}",
            "lora_alpha is usually r or twice r",
        )
    return scale


def check_bias(bias: str, some: str) -> None:
    """Raise UsageError for a bias setting that is not known.  some: the method's word for "at its sites"."""
    one_of("bias", bias, ("none", some, "all"))


def _in_list(site: Site, pattern: str) -> bool:
    """Return whether a site is in a block of the list of this name."""
    return f".{pattern}.{site.layer}." in f".{site.name}."


def _within(name: str, module: str) -> bool:
    return f".{module}." in f".{name}."


def matches(name: str, target: str | Sequence[str]) -> bool:
    """Return whether a name matches, as in PEFT.

    target: a regular expression for the whole name, or a list of names or their last parts.

    >>> matches("model.layers.0.self_attn.q_proj", ["q_proj"]), matches("model.layers.0.q_proj", "q_proj")
    (True, False)
    """
    if isinstance(target, str):
        return whole(target, name)
    return not _endings(name).isdisjoint(target)


@functools.lru_cache(maxsize=65536)
def _endings(name: str) -> frozenset[str]:
    """Return a name and its last parts: "a.b.c", "b.c" and "c"."""
    parts = name.split(".")
    return frozenset(".".join(parts[start:]) for start in range(len(parts)))


def ends_inside(name: str, module: str) -> bool:
    """Return whether a module's name ends in `name`, but within a part: PEFT takes it for one to be saved.

    >>> ends_inside("norm", "model.input_layernorm"), ends_inside("norm", "model.norm")
    (True, False)
    """
    return module.endswith(name) and not f".{module}".endswith(f".{name}")


def no_such_site(target: Any, sites: Iterable[Site]) -> SiteError:
    """Return the error for targets that match nothing, with the nearest names."""
    parts = sorted({site.name.rsplit(".", 1)[-1] for site in sites})
    shown = _shown(target)
    near = nearest(shown.split(",")[0], parts)
    return SiteError(
        f"target_modules={shown!r} matches no site of this model",
        f"'all-linear', a regular expression for whole names, or some of: {', '.join(parts)}",
        f"did you mean {' or '.join(near)}?",
    )


def _shown(target: str | Sequence[str]) -> str:
    return target if isinstance(target, str) else ", ".join(target)
