"""Adapter files: which methods the settings of a file mean, and what a file says about an adapter.

A method that PEFT has is written so that PEFT loads it. Another method, or a mix of several, is written into
the same two files under our own `peft_type`. Folders of the `adapters` library and of mlx-lm, and the GGUF
file of a LoRA, are translated when they are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from graft import storage
from graft.base.adapter_checks import check_config, check_files, of_a_file, require_range, stated
from graft.base.adapter_settings import BESIDE, INSIDE, MIXED, known_methods, methods_of, owner_of
from graft.core.method import Method
from graft.core.part import Part
from graft.core.site import Site
from graft.errors import AdapterError, listed, notice
from graft.formats import adapterhub, mlx, peft, peft_experts, peft_keys, per_expert
from graft.formats.legacy import pickled_in
from graft.formats.peft import CONFIG, WEIGHTS, Settings, Tensors
from graft.layers.targets import ends_inside, matches
from graft.quant.finite import require_finite

# Tensors of a table or a head whose rows, or columns, are the words of the vocabulary.
ROWS = ("weight", "base_layer.weight", "lora_B.weight")
COLUMNS = ("lora_embedding_A",)


class Keys:
    """The keys of one adapter's tensors in its file.

    A key is ROOT.SITE.SUFFIX, as PEFT has it. In a mix of several methods the number of the method stands
    before the suffix. Next to a task head, PEFT's keys name the backbone inside its model with a head.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self._mixed = sum(not method.is_head() for method in methods) > 1
        self._headed = any(method.classifies() for method in methods)
        self._root = BESIDE if any(method.files.beside_model for method in methods) else INSIDE

    def key(self, index: int, site: Site, suffix: str) -> str:
        """Return the key of a tensor that method number `index` saved at `site`.

        A suffix that starts with "/" is the whole key: it belongs to the adapter, not to one site.
        """
        part = f"{index}." if self._mixed and site.kind != "final" else ""
        if suffix.startswith("/"):
            return part + suffix[1:]
        backbone = trunk(site.root) if self._headed and site.kind != "final" else ""
        return f"{self._root}.{backbone}{site.path}.{part}{suffix}"


def write(
    folder: Path, methods: Sequence[Method], parts: Sequence[Part], tensors: Tensors, base: Settings
) -> Path:
    """Write an adapter's two files.  base: what they say about the base that it belongs to."""
    named = [{"name": m.name(), **m.files.own_settings(m)} for m in methods]
    config = config_of(methods, parts, base)
    if lost := lost_in_peft(config, parts):
        notice(f"PEFT takes {listed(lost)} for experts of this mixture, and answers otherwise with this file")
    return peft.write(folder, config, tensors, {"methods": named, "base": base})


def lost_in_peft(config: Settings, parts: Sequence[Part]) -> list[str]:
    """Return the targets of an adapter's config that PEFT would not find on this base (`peft_experts`)."""
    seat = next((seat for part in parts for seat in part.inserts), None)
    if seat is None or config.get("peft_type") != "LORA":
        return []
    return peft_experts.taken_for_experts(seat[0].root.config.model_type, config.get("target_modules") or [])


@unset_fake_temporarily()  # a file is real, also while a plan without numbers is made
def read(
    folder: Path, sites: Sequence[Site], *, force: bool = False
) -> tuple[list[Method], Tensors, Settings]:
    """Return (methods, tensors, base) of an adapter folder; `base` is empty if Graft did not write it.

    sites: those of the base that it is for; they tell the base's own heads from an adapter's.
    force: take settings that were edited since Graft wrote them.

    Every setting and tensor is checked before it is used (`adapter_checks`). Raises AdapterError.
    """
    with of_a_file(folder):
        config, tensors, facts = _files(folder, sites, force)
        if not facts:
            tensors = peft_keys.plain(tensors)
            config = _with_tables(config, tensors, sites)
        _check_vocabulary(tensors, sites)
        require_finite(tensors.items(), AdapterError, "use another checkpoint of this adapter", folder)
        require_range(tensors, folder)
        owner = owner_of(config)
        if owner is not None:
            config = stated(owner, config, sites)
            config, tensors = owner.files.convert(config, tensors, sites)
            config, tensors = per_expert.stacked(config, tensors, sites)
        methods = methods_of(config, facts.get("methods", []), tensors, sites)
    return methods, tensors, facts.get("base", {})


def check_base(folder: str | Path, trained_on: Settings, base: Settings) -> None:
    """Raise AdapterError if a file says that its adapter was trained on another base.

    trained_on: what the file says about its base.  base: what files say about the base at hand. Only what
    both know is compared: older files say nothing of the weights of the blocks, and of weights that are
    stored packed nobody knows what they were.
    """
    name, given = base.get("name"), trained_on.get("name") or "?"
    for key, word in (("fingerprint", "fingerprint"), ("origin", "weights of the blocks")):
        theirs, ours = trained_on.get(key), base.get(key)
        if theirs and ours and theirs != ours:
            raise AdapterError(
                f"{folder} was trained on another base: {given} ({word} {theirs[:12]})",
                f"an adapter of {name} ({word} {ours[:12]})",
                "load that base, or in Python pass force=True if you know that they fit",
            )


def _files(folder: Path, sites: Sequence[Site], force: bool) -> tuple[Settings, Tensors, Settings]:
    """Return (config, tensors, what only Graft writes) of files of any tool, in PEFT's layout or ours."""
    if folder.suffix == ".gguf" and folder.is_file():
        from graft.formats import gguf_file  # late: it needs transformers

        storage.require_unchanged(folder.parent, AdapterError, lambda name: name == folder.name)
        return *gguf_file.lora(folder, sites[0].root.config), {}
    if not (folder / CONFIG).is_file():
        near = sorted(str(p.parent) for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        raise AdapterError(
            f"{folder} holds no {CONFIG}",
            "an adapter folder",
            f"did you mean {near[0]}?" if near else "check the path",
        )
    if (folder / WEIGHTS).is_file():
        return _parsed(folder, WEIGHTS, sites, force=force)
    if (folder / adapterhub.WEIGHTS).is_file():
        adapterhub.warn_of_head(folder)
        config, tensors, facts = _parsed(folder, adapterhub.WEIGHTS, sites)
        return *adapterhub.translated(config, tensors, sites, known_methods()), facts
    if (folder / mlx.WEIGHTS).is_file():
        config, tensors, facts = _parsed(folder, mlx.WEIGHTS, sites)
        return *mlx.translated(config, tensors, sites), facts
    raise AdapterError(
        f"{folder} holds no {WEIGHTS}",
        "safetensors: pickle files (.bin, .pt) can run code and are not read",
        f"`graft convert {folder} NEW_FOLDER` writes it as safetensors, reading the weights only"
        if pickled_in(folder)
        else "copy the folder again from where it came",
    )


def _parsed(
    folder: Path, weights: str, sites: Sequence[Site], *, force: bool = False
) -> tuple[Settings, Tensors, Settings]:
    """Return (config, tensors, what only Graft writes) of an adapter folder, as they stand there."""
    check_files(folder, weights, sites)
    try:
        config, tensors, facts = peft.read(folder, weights, force=force)
    except (SafetensorError, ValueError, RecursionError) as error:  # JSON's and Unicode's are ValueErrors
        raise AdapterError(
            f"{folder} is damaged ({error!s:.200})",
            "the two files of an adapter, whole",
            "copy it again from where it came",
        ) from error
    check_config(folder, config, facts)
    return config, tensors, facts


def _check_vocabulary(tensors: Tensors, sites: Sequence[Site]) -> None:
    """Raise AdapterError for tables of another number of rows than the base's."""
    model = sites[0].root
    words = [site for site in sites if site.kind == "embed" or site.module is model.get_output_embeddings()]
    for site in words:
        key = f"{INSIDE}.{site.name}."
        tables = {end: tensors[key + end] for end in (*ROWS, *COLUMNS) if key + end in tensors}
        found = [t.shape[-1 if end in COLUMNS else 0] for end, t in tables.items() if t.ndim == 2]
        rows = site.weight().shape[0]
        other = next((count for count in found if count != rows), None)
        if other is not None:
            change = f"grew by {other - rows}" if other > rows else f"shrank by {rows - other}"
            raise AdapterError(
                f"{site.name} has {other:,} rows in the file and {rows:,} in the base: "
                f"the vocabulary {change} tokens before this adapter was trained",
                "a base with the vocabulary of the adapter",
                f"base.model.resize_token_embeddings({other}) before load_adapter; where a folder is needed, "
                "save that model with the tokenizer that lies beside the adapter, and load it from there",
            )


def _with_tables(config: Settings, tensors: Tensors, sites: Sequence[Site]) -> Settings:
    """Return a config that names the tables of the base which a file holds, if they are not the base's own.

    PEFT writes them after the vocabulary was resized, does not name them, and reads them into the base.
    """
    named = _as_peft_finds(config.get("modules_to_save") or [], sites)
    found = []
    for site in sites:
        given = tensors.get(f"{INSIDE}.{site.name}.weight")
        if site.kind not in ("embed", "head") or given is None or matches(site.name, named):
            continue
        if given.shape != site.weight().shape or not torch.equal(given.to(site.weight()), site.weight()):
            found.append(site.name)
    return config | {"modules_to_save": [*named, *found]} if named or found else config


def _as_peft_finds(names: Sequence[str], sites: Sequence[Site]) -> list[str]:
    """Return `modules_to_save` and the modules that PEFT finds by the end of a part of their names."""
    modules = [name for name, _ in sites[0].root.named_modules()]
    blurred = [module for module in modules if any(ends_inside(name, module) for name in names)]
    return [*names, *blurred]


def without_base_copies(tensors: Tensors, wanted: Tensors, model: nn.Module) -> Tensors:
    """Return `tensors` without what PEFT writes twice: tables of the base, and second names of tied biases.

    Only exact copies are dropped. Anything else stays, so that it is reported as unexpected.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(f"{INSIDE}.{name}")
    kept = dict(tensors)
    for key in tensors.keys() - wanted.keys():
        name = key.removeprefix(f"{INSIDE}.").replace(".base_layer.", ".")
        if name not in parameters:
            continue
        aliases = names[id(parameters[name])]
        same = [tensors[a] for a in aliases if a in wanted and a in tensors] or [parameters[name]]
        if any(t.shape == tensors[key].shape and torch.equal(t.float(), tensors[key].float()) for t in same):
            del kept[key]
    return kept


def trunk(model: Any) -> str:
    """Return what a model with a head puts before this model's names: "bert." for a bare BertModel, or ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and model.base_model is model else ""


def named_here(tensors: Tensors, wanted: Tensors, model: Any) -> Tensors:
    """Return `tensors` under the keys of `wanted`: `bert.encoder` with a head, `encoder` without."""
    bare, headed = f"{INSIDE}.", f"{INSIDE}.{getattr(model, 'base_model_prefix', '')}."
    named = {}
    for key, tensor in tensors.items():
        other = key.replace(headed, bare, 1) if key.startswith(headed) else key.replace(bare, headed, 1)
        named[other if key not in wanted and other in wanted else key] = tensor
    return named


def config_of(methods: Sequence[Method], parts: Sequence[Part], base: Settings) -> Settings:
    """Return the config of an adapter: one method's, or a list of several; heads are in `modules_to_save`."""
    common = {
        "base_model_name_or_path": base.get("name"),
        "inference_mode": True,
        "task_type": base.get("task_type"),
    }
    configs = [
        {"peft_type": method.files.peft_type, **method.files.describe(method, part)}
        for method, part in zip(methods, parts, strict=True)
        if not method.is_head()
    ]
    heads: list[str] = []
    for method, part in zip(methods, parts, strict=True):
        if method.is_head():
            heads += [site.name for site, _ in part.inserts if site.kind == "final"]
            common |= method.files.describe(method, part)
    if heads and configs:
        configs[0]["modules_to_save"] = [*(configs[0].get("modules_to_save") or []), *heads]
    if not configs:
        return {**common, "peft_type": methods[0].files.peft_type}
    if len(configs) == 1:
        return {**common, **configs[0]}
    return {**common, "peft_type": MIXED, "methods": configs}
