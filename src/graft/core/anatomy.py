"""Anatomy: find every site of a transformers model by looking at its modules.

There is no table of model names. Projections, norms and embeddings are recognised by what they are, blocks by
transformers' own `GradientCheckpointingLayer`, the head by `get_output_embeddings`. So a model that came out
yesterday works today.
"""

import re
from collections.abc import Container, Iterator, Sequence
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.core.site import Site
from graft.quant import is_packed
from graft.quant.experts import PROJECTIONS, PackedExperts, outer_modules, projections


def sites(model: Any, left_out: Container[str] = ()) -> list[Site]:
    """Return all sites of `model` in the order of its modules, `final` last.

    left_out: names of modules that are no projection, norm or table, whatever they look like.

    A block inside a block is no site: what happens in it happens in the outer one. A classification head that
    the model class brings along is of kind `head`: PEFT's `all-linear` leaves it out, too.
    """
    places: list[Site] = []
    inner: list[Site] = []
    heads, ids = _heads(model), model.get_input_embeddings().weight
    for name, module in outer_modules(model):
        kind = "head" if any(module is head for head in heads) else kind_of(module)
        if isinstance(module, nn.Embedding) and module.weight is ids:
            kind = "embed"  # T5 has two more names for this table; tables of positions are no sites
        if kind == "block" and any(s.kind == "block" and name.startswith(s.name + ".") for s in places):
            inner.append(Site(name, kind, model, layer_of(name)))
        elif kind and name not in left_out:
            places.append(Site(name, kind, model, layer_of(name)))
        if name and any(True for _ in module.parameters(recurse=False)):
            places.append(Site(name, "module", model, layer_of(name)))
        if kind is None:
            places += [
                Site(f"{name}.{leaf}", "parameter", model, layer_of(name)) for leaf in matrices(module)
            ]
    return [
        *places,
        *_stacks(places),
        *_sublayers(places, inner),
        *_prompts(model),
        Site(_final_name(model), "final", model),
    ]


def kind_of(module: nn.Module) -> str | None:
    """Return linear, norm or block; None for tables, containers and activations."""
    name = type(module).__name__
    if isinstance(module, GradientCheckpointingLayer):
        return "block"
    if isinstance(module, nn.Linear) or name == "Conv1D" or is_packed(module):
        return "linear"
    if "norm" in name.lower() and getattr(module, "weight", None) is not None:
        return "norm"
    return None


def experts(places: Sequence[Site]) -> list[Site]:
    """Return the parameters that hold the matrices of all experts of a mixture.

    They are those of transformers' registry of experts, and what stacks matrices where a name says so.
    """

    def of_experts(site: Site) -> bool:
        words = f"{type(site.module).__name__} {site.name}".lower()
        return site.leaf in projections(site.module) or "expert" in words or "moe" in words

    stacked = [site for site in places if site.kind == "parameter" and site.experts > 1]
    return [site for site in stacked if of_experts(site)]


def matrices(module: nn.Module) -> list[str]:
    """Return the names of a module's own matrices, and of those of all experts that it stacks, packed or not.

    Tables and convolutions have none. They are in the order in which transformers creates them.
    """
    if isinstance(module, nn.Embedding) or type(module).__module__.startswith("torch.nn"):
        return []
    names = [name for name, p in module.named_parameters(recurse=False) if p.ndim in (2, 3)]
    names += [name for name, child in module.named_children() if isinstance(child, PackedExperts)]
    return sorted(names, key=_creation)


def _creation(name: str) -> tuple[int, int]:
    """Return what sorts the matrices of experts, each before its bias; other names stay where they are."""
    stem = next((i for i, stem in enumerate(PROJECTIONS) if name.startswith(stem)), None)
    return (-1, 0) if stem is None else (stem, len(name))


def layer_of(name: str) -> int | None:
    """Return the number of the block in a module path: the first part that is a number.

    >>> layer_of("model.layers.3.self_attn.q_proj"), layer_of("lm_head")
    (3, None)
    """
    number = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(number.group(1)) if number else None


def family(model: Any) -> str:
    """Return "causal", "masked", "seq2seq", or "encoder" for a model without a language head."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "seq2seq"
    if model.get_output_embeddings() is None:
        return "encoder"
    return "masked" if predicts_hidden(type(model), model.config) else "causal"


def predicts_hidden(cls: type, config: Any) -> bool:
    """Return whether a class of transformers ends in a head that names hidden tokens.

    XLM and Flaubert have one class for both: their config says whether it is causal.
    """
    both = "WithLMHead" in cls.__name__ and not getattr(config, "causal", True)
    return both or "MaskedLM" in cls.__name__ or "PreTraining" in cls.__name__


def _stacks(places: Sequence[Site]) -> Iterator[Site]:
    """Yield the modules that own a list of blocks, and usually the norm after the last one."""
    lists = dict.fromkeys(site.name.rpartition(".")[0] for site in places if site.kind == "block")
    for name in dict.fromkeys(name.rpartition(".")[0] for name in lists):
        yield Site(name, "stack", places[0].root)


def _sublayers(places: Sequence[Site], inner: Sequence[Site]) -> Iterator[Site]:
    """Yield the attention and feed-forward parts of every block, and a `kv` site where queries are made.

    inner: blocks inside blocks, which have parts of their own. The order of a block's projections tells where
    a part begins and ends. A feed-forward part with experts is left out: no single projection is its last.
    """
    blocks = [*(site for site in places if site.kind == "block"), *inner]
    parts: dict[tuple[str, str, str], list[Site]] = {}
    for site in places:
        around = [b.name for b in blocks if site.name.startswith(b.name + ".")]
        if site.kind == "linear" and around:
            block = max(around, key=len)
            parts.setdefault((block, *part_of(site.name[len(block) + 1 :])), []).append(site)
    order = {block.name: number for number, block in enumerate(blocks)}
    for (_, kind, _), linears in sorted(parts.items(), key=lambda part: order[part[0][0]]):
        if not 2 <= len(linears) <= 4:
            continue
        queries = [s for s in linears if s.name.rpartition(".")[2].startswith("q")]
        entry = (queries if queries and kind != "mlp" else linears)[0]  # BART makes keys first
        last = [s for s in linears if s.name != entry.name][-1]
        if kind != "mlp":
            yield Site(entry.name.rpartition(".")[0], "kv", entry.root, entry.layer)
        if last.out_features in (entry.in_features, _width(entry.root)):  # a gate of experts is narrower
            yield Site(last.name, kind, last.root, last.layer, entry.name)


def _width(model: Any) -> int | None:
    """Return the width of what passes from block to block, as the model's configuration has it."""
    return getattr(model.config.get_text_config(), "hidden_size", None)


def part_of(path: str) -> tuple[str, str]:
    """Return (kind, name) of the sublayer that a projection of a block belongs to.

    >>> part_of("layer.1.EncDecAttention.q"), part_of("attention.self.query"), part_of("output.dense")
    (('cross', 'EncDecAttention'), ('attention', 'attention'), ('mlp', ''))
    """
    name = next((part for part in path.split(".") if re.search("attn|attention", part, re.IGNORECASE)), "")
    crosses = re.search("cross|enc_?dec|encoder_att", name, re.IGNORECASE)
    return ("cross" if crosses else "attention" if name else "mlp"), name


def _prompts(model: Any) -> Iterator[Site]:
    """Yield the embeddings, where vectors can be put around the rows; in an encoder-decoder the encoder's."""
    reader = model.get_encoder() if family(model) == "seq2seq" else model
    if not hasattr(reader, "get_input_embeddings"):
        return
    table = reader.get_input_embeddings()
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is table]
    yield from (Site(name, "prompt", model) for name in names[:1])


def _heads(model: Any) -> list[nn.Module]:
    """Return the language head, and the layers of a task head that the model class has."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    task = [
        getattr(model, name)
        for name in ("score", "classifier", "qa_outputs", "classification_head")
        if hasattr(model, name)
    ]
    return [head for head in (output, *task) if head is not None]


def _final_name(model: Any) -> str:
    """Return PEFT's name of a classification head: `score` on decoders, `classifier` on encoders."""
    return "score" if family(model) in ("causal", "seq2seq") else "classifier"
