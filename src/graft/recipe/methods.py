"""Check the `method:` part of a recipe against the method's file, which is read, not imported; presets."""

from graft.core.cards import cards
from graft.errors import nearest
from graft.recipe.settings import Settings, filled, problems_of

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


def resolve_methods(raw: Settings, notices: list[str]) -> dict[str, str]:
    """Expand presets and defaults of `method` in place to {name, all settings}; return the problems by key.

    Of a recipe that goes on from a saved adapter only what is written is kept: the rest is the adapter's.
    notices: a list to which is added what a preset sets.
    """
    usual = {"name": "full" if isinstance(raw.get("model"), dict) else "lora"}
    goes_on = raw.get("adapter") is not None and not isinstance(raw.get("model"), dict)
    given = raw.get("method", [] if goes_on else usual)
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
        method, wrong = _checked(_expanded(entry, raw, notices), prefix, fill=not goes_on)
        problems |= wrong
        methods.append(method)
    if not entries and not goes_on:
        problems["method"] = "is an empty list; `graft methods` lists the names"
    if not problems:
        raw["method"] = methods if isinstance(given, list) else methods[0]
    else:
        raw.pop("method", None)  # the checks above say more than the tree's own would
    return problems


def method_conflicts(methods: list[Settings], quant: str) -> dict[str, str]:
    """Return by key what is wrong with methods that do not work on packed weights, or not together."""
    problems = {}
    known = cards()
    declared = {method["name"]: known[method["name"]].declared for method in methods}
    changing = [
        method for method in methods if declared[method["name"]].get("kinds") != ("final",)
    ]  # no heads
    for name, declarations in declared.items():
        if quant != "none" and declarations.get("quantisable", True) is not True:
            problems["quant"] = f"= {quant} does not work with method {name}: {declarations['quantisable']}"
        if declarations.get("in_place") and len(changing) > 1:
            problems["method"] = (
                f"{name} trains the model's own tensors and cannot be combined with another method"
            )
    return problems


def method_help(method: Settings) -> dict[str, str]:
    """Return every dotted key of one method with its line of help."""
    known = cards()
    fields = known[method["name"]].settings if method["name"] in known else {}
    help_by_key = {f"method.{key}": setting.help for key, setting in fields.items()}
    return {"method.name": "`graft methods` lists them"} | help_by_key


def _expanded(entry: Settings, raw: Settings, notices: list[str]) -> Settings:
    """Return the method that a preset stands for, and set the preset's other keys in `raw`."""
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
    additions = ", ".join(applied) or "your settings"
    notices.append(
        f"{entry['name']} is method {method['name']} on {method['target_modules']} with {additions}"
    )
    return method | {key: value for key, value in entry.items() if key != "name"}


def _checked(entry: Settings, prefix: str, *, fill: bool) -> tuple[Settings, dict[str, str]]:
    """Return the method, and what is wrong with its settings by key.  fill: add the other settings."""
    known = cards()
    if entry["name"] not in known:
        close = ", ".join(nearest(entry["name"], [*known, *PRESETS], 2))
        return entry, {f"{prefix}.name": f"= {entry['name']!r} is an unknown method; nearest: {close}"}
    card = known[entry["name"]]
    given = {key: value for key, value in entry.items() if key != "name"}
    if problems := problems_of(card.name, card.settings, given, prefix):
        return entry, problems
    lr = given.get("lr")
    if lr is not None and lr <= 0:
        return entry, {f"{prefix}.lr": f"= {lr!r} is not above 0 ({card.settings['lr'].help})"}
    return {"name": card.name} | filled(card.settings, given, fill=fill), {}
