"""The `method:` part of a recipe, checked against the method's own file without importing it; and the presets."""

from typing import Annotated, Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, create_model

from graft.core.cards import REQUIRED, Card, Source, cards
from graft.errors import nearest

Settings = dict[str, Any]

# A preset is a word for several settings; each applies unless its key is set otherwise.
PRESETS: dict[str, tuple[Settings, Settings]] = {
    # word: (the method, other keys)
    "qlora": (
        {"name": "lora", "target_modules": "all-linear"},
        {"quant": "nf4", "train.optimizer": "paged_adamw_8bit"},
    ),
    "qalora": (
        {"name": "qa_lora", "target_modules": "all-linear"},
        {"quant": "int4", "train.optimizer": "paged_adamw_8bit"},
    ),
}
# What the annotations of a method's fields may be written with.
_TYPES = {kind.__name__: Annotated[kind, Strict()] for kind in (int, float, bool, str)} | {
    "Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union,
}  # fmt: skip


def resolved(raw: Settings, notices: list[str]) -> dict[str, str]:
    """Expand presets and defaults of `method` in place to {name, all settings}. Returns problems by key."""
    usual = {"name": "full" if isinstance(raw.get("model"), dict) else "lora"}
    given = raw.get("method", usual)
    given = usual | given if isinstance(given, dict) else given  # method.r=8 alone is about the usual method
    entries = given if isinstance(given, list) else [given]
    problems: dict[str, str] = {}
    methods = []
    for index, entry in enumerate(entries):
        prefix = f"method.{index}" if isinstance(given, list) else "method"
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            problems[prefix] = "has no name; write {name: lora, ...}, `graft methods` lists the names"
            continue
        filled, wrong = _checked(_expanded(entry, raw, notices), prefix)
        problems |= wrong
        methods.append(filled)
    if not entries:
        problems["method"] = "is an empty list; `graft methods` lists the names"
    if not problems:
        raw["method"] = methods if isinstance(given, list) else methods[0]
    else:
        raw.pop("method", None)  # reported here, and better than the tree's own check could
    return problems


def refused(methods: list[Settings], quant: str) -> dict[str, str]:
    """Problems of methods that do not work on packed weights, or not together."""
    found = {}
    known = cards()
    inside = [
        method for method in methods if known[method["name"]].declared.get("kinds") != ("final",)
    ]  # no head
    for method in methods:
        declared = known[method["name"]].declared
        if quant != "none" and declared.get("quantisable", True) is not True:
            found["quant"] = f"= {quant} does not go with method {method['name']}: {declared['quantisable']}"
        if declared.get("in_place") and len(inside) > 1:
            found["method"] = f"{method['name']} trains the base's own tensors and goes with no other method"
    return found


def method_help(method: Settings) -> dict[str, str]:
    """Every dotted key of one method with its line of help."""
    known = cards()
    fields = known[method["name"]].settings if method["name"] in known else {}
    return {"method.name": "`graft methods` lists them"} | {
        f"method.{key}": setting.help for key, setting in fields.items()
    }


def _expanded(entry: Settings, raw: Settings, notices: list[str]) -> Settings:
    if entry["name"] not in PRESETS:
        return entry
    method, others = PRESETS[entry["name"]]
    applied = []
    for key, setting in others.items():
        section, _, leaf = key.rpartition(".")
        group = raw.setdefault(section, {}) if section else raw
        if isinstance(group, dict) and leaf not in group:
            group[leaf] = setting
            applied.append(f"{key}={setting}")
    with_ = ", ".join(applied) or "your settings"
    notices.append(f"{entry['name']} is method {method['name']} on {method['target_modules']} with {with_}")
    return method | {key: value for key, value in entry.items() if key != "name"}


def _checked(entry: Settings, prefix: str) -> tuple[Settings, dict[str, str]]:
    """The method with all its settings, and what is wrong with them."""
    known = cards()
    if entry["name"] not in known:
        near = nearest(entry["name"], [*known, *PRESETS], 2)
        return entry, {f"{prefix}.name": f"= {entry['name']!r} is no method; nearest: {', '.join(near)}"}
    card = known[entry["name"]]
    given = {key: value for key, value in entry.items() if key != "name"}
    try:
        _model(card).model_validate(given)
    except ValidationError as error:
        return entry, dict(
            _problem(card, prefix, detail) for detail in reversed(error.errors(include_url=False))
        )
    if (lr := given.get("lr")) is not None and lr <= 0:
        return entry, {f"{prefix}.lr": f"= {lr!r} is not above 0 ({card.settings['lr'].help})"}
    filled = {
        key: s.default
        for key, s in card.settings.items()
        if not (s.default is REQUIRED or isinstance(s.default, Source))
    }
    # Lists, as YAML has them, so that a recipe that is written and read again is equal.
    filled = {
        key: list(value) if isinstance(value, tuple) else value for key, value in (filled | given).items()
    }
    return {"name": card.name} | filled, {}


def _model(card: Card) -> type[BaseModel]:
    """A pydantic model with the fields of the card."""
    fields: dict[str, Any] = {}
    for name, setting in card.settings.items():
        try:
            kind = eval(setting.type, dict(_TYPES))  # our own method file's annotation, never a user's text
        except (NameError, TypeError):
            kind = Any
        fields[name] = (kind, ... if setting.default is REQUIRED else None)
    config = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=(), arbitrary_types_allowed=True
    )
    return create_model(card.cls, __config__=config, **fields)


def _problem(card: Card, prefix: str, detail: Any) -> tuple[str, str]:
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return (
            f"{prefix}.{name}",
            f"is no setting of {card.name}; nearest: {', '.join(nearest(name, card.settings, 2))}",
        )
    if detail["type"] == "missing":
        return f"{prefix}.{name}", f"is missing ({card.settings[name].help})"
    return (
        f"{prefix}.{name}",
        f"= {detail['input']!r:.60} is not {card.settings[name].type} ({card.settings[name].help})",
    )
