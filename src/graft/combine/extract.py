"""Extract what tuning changed in a model, as a LoRA on the model it started from.

    D = W_tuned − W_base ≈ B A         at every targeted layer, of its largest singular values S
    kept = Σ_{i ≤ r} S_i² / ‖D‖²       the share of the change that the factors hold

The tuned model is read from its folder tensor by tensor and is never in memory as a whole. What two factors
cannot hold (changed norms, biases, embeddings) is named, or kept in full with them: biases as trained biases,
everything else as `modules_to_save`, as PEFT stores it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from graft.base.adapter import Adapter
from graft.combine.low_rank import attach, truncated
from graft.core.by_name import answered, require_base
from graft.core.site import Site
from graft.errors import AdapterError, ModelError, UsageError, listed, notice, one_of
from graft.methods.lora import LoRA
from graft.models.files import open_files
from graft.quant import is_packed
from graft.quant.finite import require_finite

if TYPE_CHECKING:
    from graft.base.base import Base

RESTS = ("name", "keep")
RANK = 16  # if neither r nor energy is given
REPLACEABLE = ("linear", "norm", "embed", "head")  # sites that `modules_to_save` may name


class Layer(NamedTuple):
    """The factors of one layer.  kept: their share of the change.  norm: ‖D‖, how large the change is."""

    A: torch.Tensor
    B: torch.Tensor
    kept: float
    norm: float


@dataclass
class Difference:
    """What tuning changed.

    layers: {site: Layer} of the targeted layers that changed.  rest: names of other parameters that changed.
    foreign: tensors of the tuned model that the base has no place for.
    """

    base: "Base"
    tuned: Mapping[str, Any] = field(repr=False)
    foreign: list[str]
    layers: dict[str, Layer] = field(default_factory=dict, repr=False)
    rest: list[str] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The share of the change of all layers together."""
        total = sum(layer.norm**2 for layer in self.layers.values())
        return sum(layer.kept * layer.norm**2 for layer in self.layers.values()) / total if total else 1.0

    def attach(self, name: str, rest: str = "name") -> Adapter:
        """Attach the LoRA to its base.

        rest: "name" leaves the rest of the change out, "keep" adds it in full.
        """
        one_of("rest", rest, RESTS)
        if not self.layers:
            others = _shown(self.rest) if self.rest else "the two models are equal"
            raise AdapterError(
                f"no targeted layer changed; {others}",
                "a model that was tuned from this base",
                "check the paths and target_modules",
            )
        factors = {site: (layer.A, layer.B) for site, layer in self.layers.items()}
        adapter = attach(self.base, name, factors, **(self._settings() if rest == "keep" else {}))
        for site, insert in adapter.inserts:
            if insert.low_rank() is None:  # a bias or a whole module
                names = {suffix: f"{site.name}.{suffix.rpartition('.')[2]}" for suffix in insert.saved()}
                insert.load({suffix: self.tuned[key][...].detach() for suffix, key in names.items()})
        return adapter

    def _settings(self) -> dict[str, Any]:
        """Return settings of a LoRA that also trains the rest.

        Raises AdapterError for what it cannot hold.
        """
        places = {site.name for site in self.base.sites if site.kind in REPLACEABLE}
        same = _aliases(self.base.model)
        lost = [name for name in self.rest if not any(_module(alias) in places for alias in same[name])]
        if lost:
            raise AdapterError(
                f"rest='keep' with {_shown(lost)}",
                "changes of linear layers, norms, embeddings and heads",
                "leave them out with rest='name', or use the tuned model as it is",
            )
        modules = [_module(name) for name in self.rest if _module(name) in places]
        whole = tuple(dict.fromkeys(module for module in modules if module not in self.layers))
        return {
            "modules_to_save": whole,
            "bias": "lora_only" if set(modules) & self.layers.keys() else "none",
        }


@answered
def extract(
    base: "Base",
    tuned: str | Path | nn.Module,
    name: str,
    *,
    r: int | None = None,
    energy: float | None = None,
    target_modules: str | tuple[str, ...] = "all-linear",
    rest: str = "name",
) -> Adapter:
    """Attach the LoRA that turns `base` into `tuned`, and return it.

    tuned: a model folder, or a model in memory.  r: rank of every layer, 16 where nothing is given.  energy:
    instead, the share of each layer's change to keep; with r, at most that rank.  rest: "name" warns of what
    else changed, "keep" takes it along.  `difference` says how much of each layer is kept before anything is
    attached.
    Raises AdapterError where the two models do not fit each other.
    """
    require_base("graft.extract", base)
    change = difference(base, tuned, r=r, energy=energy, target_modules=target_modules)
    adapter = change.attach(name, rest)
    left = [*(change.rest if rest == "name" else ()), *change.foreign]
    if left:
        notice(f"{_shown(left)}: not in {name!r}; rest='keep' takes along what the base has")
    return adapter


def difference(
    base: "Base",
    tuned: str | Path | nn.Module,
    *,
    r: int | None = None,
    energy: float | None = None,
    target_modules: str | tuple[str, ...] = "all-linear",
    on_layer: Callable[[str, Layer], None] | None = None,
) -> Difference:
    """Return what tuning changed, layer by layer; arguments as in `extract`.

    on_layer: is called with (site, Layer) after each layer that changed.
    """
    if (r is not None and r < 1) or (energy is not None and not 0 < energy <= 1):
        raise UsageError(
            f"r={r}, energy={energy}", "a rank from 1, a share above 0 up to 1", "try r=16 or energy=0.9"
        )
    if any(is_packed(module) for module in base.model.modules()):
        given = "a quantised base, whose rounding would be taken for a change"
        raise AdapterError(
            given, "the base in 16 or 32 bits", "load it without quant=; the adapter then fits both"
        )
    change = Difference(base, *_aligned(base.model, _tensors(tuned)))
    targets = {
        f"{site.name}.weight": site for site in LoRA(target_modules=target_modules).targets(base.sites)
    }
    for name, before in base.model.named_parameters(remove_duplicate=False):
        after = change.tuned[name][...].detach().to(before.device)
        if torch.equal(after.to(before.dtype), before):
            continue
        if name not in targets:
            change.rest.append(name)
            continue
        site = targets[name]
        change.layers[site.name] = _layer(site, after.float() - before.float(), r, energy)
        if on_layer is not None:
            on_layer(site.name, change.layers[site.name])
    return change


def _layer(site: Site, change: torch.Tensor, r: int | None, energy: float | None) -> Layer:
    require_finite([(site.name, change)], ModelError, "use an intact model", "the tuned model")
    matrix = change.T if site.transposed or site.kind == "embed" else change
    A, B, kept = truncated(matrix, RANK if r is None and energy is None else r, energy)
    return Layer(A, B, kept, float(change.norm()))


def _tensors(tuned: str | Path | nn.Module) -> Mapping[str, Any]:
    """Return {name: what gives its tensor by `[...]`}: parameters in memory, or slices of the files."""
    if isinstance(tuned, nn.Module):
        return dict(tuned.named_parameters(remove_duplicate=False))
    opened = open_files(tuned, None, plain=True)
    opened.comparison.wait()
    if opened.packed:
        raise ModelError(
            f"{tuned} is quantised", "a tuned model in 16 or 32 bits", "give the model before quantisation"
        )
    return opened.state


def _aligned(model: Any, stored: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return ({name in the base: stored tensor}, stored names without a place in it). Raises AdapterError.

    A file may leave out or add the prefix of the backbone, and has one of several tied tensors only.
    """
    prefix = model.base_model_prefix + "."

    def spellings(name: str) -> tuple[str, str, str]:
        return name, name.removeprefix(prefix), prefix + name

    aliases = _aliases(model)
    aligned: dict[str, Any] = {}
    wrong: list[str] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = next((s for alias in aliases[name] for s in spellings(alias) if s in stored), None)
        shape = None if key is None else _shape(stored[key])
        if key is not None and shape == tuple(parameter.shape):
            aligned[name] = stored[key]
        else:
            there = f"{shape} in" if shape else "not in"
            wrong.append(f"{name} {tuple(parameter.shape)}: {there} the tuned model")
    if wrong:
        raise AdapterError(
            f"the models differ in {len(wrong)} tensors: {listed(wrong, 4, '; ')}",
            "a model that was tuned from this base",
            "load the base it was tuned from, with its vocabulary resized in the same way",
        )
    names = [*aliases, *(name for name, _ in model.named_buffers())]
    known = {spelling for name in names for spelling in spellings(name)}
    needless = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    foreign = [k for k in stored if k not in known and not any(re.search(pattern, k) for pattern in needless)]
    return aligned, foreign


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Return {name: all names of that parameter, its own first}."""
    owners: dict[int, list[str]] = defaultdict(list)
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        owners[id(parameter)].append(name)
    return {
        name: sorted(owners[id(parameter)], key=lambda other: other != name)
        for name, parameter in named.items()
    }


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _shown(names: list[str]) -> str:
    return f"changed tensors {listed(names)}"
