"""Write an adapter with a task head as a classifier of transformers, where its class computes what it does.

    decoders             score(h at the last token that is no padding)            pool: last
    BERT, RoBERTa, ...   classifier(f(dense(h at the first token)))               pool: first
    words                classifier(h_t), or score(h_t)                           pool: none

Our head is linear in h. Where the class has a pooler in between, its dense layer becomes 2⁻²⁴ on the
diagonal, where f (tanh, GELU) is a straight line to the last digit of fp32, and the classifier is multiplied
by 2²⁴ and 1/f'(0). Powers of two lose no digit. No class pools by the mean: such a head is refused, and so is
any whose answers the class does not give, alone or in a padded batch.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from graft.errors import MergeError
from graft.generate.generate import evaluating
from graft.models.load import quiet
from graft.shipping import provenance
from graft.shipping.card import Use, write_card
from graft.shipping.fidelity import NOISE
from graft.shipping.hf import checked_copy, write_state
from graft.shipping.origin import Origin
from graft.shipping.prompts import Prompts

if TYPE_CHECKING:
    from graft.base.base import Base

SEQUENCE = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
TOKEN = modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
SMALL = 2.0**-24  # of the pooler's diagonal
SLOPES = (1.0, 0.5)  # of tanh and of GELU at 0
APART = 0.05  # largest difference of logits, as a share of their size, that rounding may make
TOGETHER = 8  # prompts of the padded batch
READS = {"last": "last token", "first": "first token", "mean": "mean of all tokens", "none": "single tokens"}
PEFT = "export it with to='peft'"


def check(base: "Base", name: str, to: str) -> None:
    """Raise MergeError for an adapter whose head no class of transformers computes, before the work."""
    adapter = base.adapters[name]
    head = adapter.head
    if to != "hf":
        raise MergeError(
            f"{name!r} has a task head, for which {to} has no place",
            "a layout that holds classifiers",
            "export it with to='hf' or to='peft'",
        )
    if not head.is_head() or any(method.word_head for method in adapter.methods):
        raise MergeError(
            f"{name!r} answers through the word head of {type(base.model).__name__} ({head.name()})",
            "a linear task head",
            PEFT,
        )
    cls, pool = _class(base, name), _insert(base, name).pool
    config = _config(base, name, base.model.config)
    wanted = "none" if head.every_token else "last" if hasattr(_empty(cls, config), "score") else "first"
    if pool != wanted:
        again = f"train it again with method: [..., {{name: task_head, pool: {wanted}}}]"
        reads = f"{cls.__name__} reads the {READS[wanted]}"
        raise MergeError(
            f"the task head of {name!r} reads the {READS[pool]}, and {reads}",
            f"a head with pool={wanted!r}",
            f"{PEFT}, or {again}",
        )


def write_classifier(base: "Base", folder: Path, adapter: str, name: str, origin: Origin | None) -> list[str]:
    """Write a base, into which the rest of this adapter is merged, with its head; return unpacked layers.

    name: what the folder will be called.
    Raises MergeError for a head whose answers transformers' class does not give.
    """
    clone, unpacked = checked_copy(base.model, dtype=base.file_dtype)
    built = _built(base, adapter, clone)
    own, base.tokenizer = base.tokenizer, _padding(base, built.config)
    try:
        write_state(base, built, built.state_dict(), folder)
    finally:
        base.tokenizer = own
    _write_card(base, folder, adapter, name, built, origin)
    return unpacked


def labels_of(base: "Base", adapter: str) -> list[str]:
    """Return the names of an adapter's classes."""
    head = base.adapters[adapter].head
    return [str(label) for label in head.labels] or [f"LABEL_{i}" for i in range(head.num_labels)]


@torch.no_grad()
def require_same_together(base: "Base", name: str, reading: Any, prompts: Prompts) -> None:
    """Raise MergeError if the written classifier answers prompts in one padded batch differently.

    Its class finds the last token by the padding's id, ours by the mask.
    """
    model, rows = reading.model, prompts.rows[:TOGETHER]
    pad = model.config.get_text_config().pad_token_id or 0
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows])
    more = {
        key: torch.tensor([[*row.inputs[key], *[0] * (length - len(row.ids))] for row in rows])
        for key in rows[0].inputs
    }
    keywords = {"attention_mask": mask, **more}
    on_base = {key: tensor.to(base.device) for key, tensor in keywords.items()}
    ours = base(ids.to(base.device), adapters=[name] * len(rows), **on_base)[0].float().cpu()
    theirs = model(input_ids=ids, **keywords).logits.float()
    live = mask.bool() if ours.ndim == 3 else torch.ones(len(rows), dtype=torch.bool)
    _require_near(name, type(model).__name__, ours[live], theirs[live], base.file_dtype)


def _require_near(name: str, cls: str, ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    apart, size = float((ours - theirs).abs().max()), float(ours.abs().mean())
    room = max(APART if dtype != torch.float32 else 1e-3, NOISE * torch.finfo(dtype).eps) * max(size, 1e-3)
    if not apart <= max(room, room * float(ours.abs().max()) / max(size, 1e-3)):
        raise MergeError(
            f"{cls} answers {name!r} differently: logits of size {size:.3g} differ by {apart:.3g}",
            "the answers that were trained",
            PEFT,
        )


@torch.no_grad()
def _built(base: "Base", adapter: str, clone: Any) -> Any:
    """Return the classifier: the clone's backbone, and the head in the class's own layers."""
    insert, config = _insert(base, adapter), _config(base, adapter, clone.config)
    built = _empty(_class(base, adapter), config)
    wanted, inside = built.state_dict(), f"{built.base_model_prefix}."
    state = {f"{inside}{key}": tensor for key, tensor in clone.base_model.state_dict().items()}
    state = {key: tensor for key, tensor in state.items() if key in wanted and ".pooler." not in key}
    kind = next(iter(state.values())).dtype
    tried: list[tuple[float, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]] = []
    for slope in SLOPES if _dense(built) else SLOPES[:1]:
        head = {key: t.to(kind) for key, t in _layers(built, insert, slope).items()}
        unread = {  # poolers that nothing reads
            key: torch.zeros(t.shape, dtype=kind)
            for key, t in wanted.items()
            if key not in state and key not in head and ".pooler." in key
        }
        if unknown := sorted(wanted.keys() - state.keys() - head.keys() - unread.keys()):
            raise MergeError(
                f"{type(built).__name__} has {unknown[0]}, which is no part of what was trained",
                "a class that ends in a linear layer, or in a pooler with tanh or GELU and one",
                PEFT,
            )
        built.load_state_dict({**state, **head, **unread}, strict=True, assign=True)
        ours, theirs = _answers(base, built.eval(), insert)
        tried.append((float((ours - theirs).abs().mean()), head | unread, ours, theirs))
    _, best, ours, theirs = min(tried, key=lambda one: one[0])
    _require_near(adapter, type(built).__name__, ours, theirs, kind)
    built.load_state_dict({**state, **best}, strict=True, assign=True)
    return built


def _answers(base: "Base", built: Any, insert: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a few made-up ids: of our head on the base's states, and of the classifier."""
    size = built.config.get_text_config().vocab_size
    ids = torch.randint(4, size, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with evaluating(base):
        inputs = {"input_ids": ids.to(base.device), "attention_mask": mask.to(base.device)}
        states = base.model.base_model(**inputs)[0]
        ours = insert(states, inputs["attention_mask"]).float().cpu()
    _fill_buffers(built, base.model.base_model)
    pad, built.config.pad_token_id = built.config.pad_token_id, -1  # no made-up id is padding
    try:
        theirs = built(input_ids=ids, attention_mask=mask).logits
    finally:
        built.config.pad_token_id = pad
    return ours, theirs.float()


def _fill_buffers(built: Any, backbone: Any) -> None:
    """Give the classifier what its class computes and no file holds: tables of rotations, of positions."""
    own = dict(backbone.named_buffers())
    for path, module in built.base_model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = own[f"{path}.{name}" if path else name].cpu()


def _config(base: "Base", adapter: str, config: Any) -> Any:
    """Return the config of the classifier."""
    config, names = copy.deepcopy(config), labels_of(base, adapter)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    if not base.adapters[adapter].head.every_token:
        config.problem_type = "single_label_classification" if len(names) > 1 else "regression"
    if hasattr(config, "pooler_hidden_act"):  # DeBERTa's pooler may be linear
        config.pooler_hidden_act = "linear"
    if base.tokenizer is not None:
        config.pad_token_id = _pad_of(base)
    return config


def _pad_of(base: "Base") -> int | None:
    """Return the token that pads: not one that the tokenizer puts at the end of every text.

    A decoder's class takes the last token that is another for the end of the text.
    """
    tokenizer = base.tokenizer
    if base.family != "causal":
        return (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else base.model.config.pad_token_id
        )
    last = tokenizer("a")["input_ids"][-1:]
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((token for token in candidates if token is not None and token not in last), None)


def _padding(base: "Base", config: Any) -> Any:
    """Return the tokenizer to write: it pads on the right, with the token that the config names."""
    if base.tokenizer is None or config.pad_token_id is None:
        return base.tokenizer
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id != config.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    return tokenizer


def _layers(built: Any, insert: Any, slope: float) -> dict[str, torch.Tensor]:
    """Return the tensors of the class's layers behind the backbone, which compute W h + b."""
    weight = insert.weight.detach().float().cpu()
    found: dict[str, torch.Tensor] = {}
    gain = 1.0
    if dense := _dense(built):
        path, linear = dense
        small = 1.0 if getattr(built.config, "pooler_hidden_act", "") == "linear" else SMALL
        gain = 1.0 if small == 1.0 else 1.0 / (small * slope)
        found[f"{path}.weight"] = torch.eye(linear.out_features, linear.in_features) * small
        if linear.bias is not None:
            found[f"{path}.bias"] = torch.zeros(linear.out_features)
    path, last = _last(built)
    found[f"{path}.weight"] = weight * gain
    if last.bias is not None:
        found[f"{path}.bias"] = (
            torch.zeros(len(weight)) if insert.bias is None else insert.bias.detach().cpu()
        )
    return found


def _last(built: Any) -> tuple[str, nn.Linear]:
    """Return the layer that gives the classes, with its name."""
    linears = _linears(built, ("score", "classifier.out_proj", "classifier"))
    if not linears:
        raise MergeError(
            f"{type(built).__name__} names its layer of classes in a way that we do not know",
            "score or classifier",
            PEFT,
        )
    return linears[0]


def _dense(built: Any) -> tuple[str, nn.Linear] | None:
    """Return the layer before the last one, with its name; None where the last reads hidden states."""
    inside = built.base_model_prefix
    paths = ("classifier.dense", "pooler.dense", f"{inside}.pooler.dense", f"{inside}.pooler")
    words = "TokenClassification" in type(built).__name__  # its backbone's pooler is not read
    return next(iter(_linears(built, paths[:1] if words or hasattr(built, "score") else paths)), None)


def _linears(model: Any, paths: tuple[str, ...]) -> list[tuple[str, nn.Linear]]:
    modules = dict(model.named_modules())
    return [(path, m) for path in paths if isinstance(m := modules.get(path), nn.Linear)]


def _empty(cls: Any, config: Any) -> Any:
    """Return a model of this class whose tensors have no memory."""
    with torch.device("meta"), quiet():
        return cls(config)


def _class(base: "Base", name: str) -> Any:
    """Return transformers' class of classifiers for this model. Raises MergeError if there is none."""
    every = base.adapters[name].head.every_token
    mapping: Any = TOKEN if every else SEQUENCE
    config = base.model.config
    if type(config) not in mapping:
        what = "words" if every else "texts"
        raise MergeError(
            f"transformers has no class for classes of {what} on {config.model_type}", "one", PEFT
        )
    cls = mapping[type(config)]
    return cls[0] if isinstance(cls, tuple) else cls


def _insert(base: "Base", name: str) -> Any:
    return next(insert for site, insert in base.adapters[name].inserts if site.kind == "final")


def _write_card(
    base: "Base", folder: Path, adapter: str, name: str, built: Any, origin: Origin | None
) -> None:
    """Write the card of a classifier."""
    words, cls = base.adapters[adapter].head.every_token, type(built).__name__
    task = "token-classification" if words else "text-classification"
    labels = ", ".join(labels_of(base, adapter)) if built.config.num_labels > 1 else "one number, a reward"
    lines = f'from transformers import pipeline\nclassify = pipeline("{task}", "./{name}")\nclassify("...")'
    use = Use("Use", f"# In the folder above this one:\n{lines}", "python")
    summary = f"A `{cls}` made from `{provenance.public_name(base)}`. It tells: {labels}."
    about: dict[str, Any] = {"library": "transformers", "relation": "finetune", "origin": origin}
    write_card(base, folder, name, summary, [use], pipeline=task, **about)
