"""Check the `method:` part of a recipe against the method's file, which is read, not imported."""

from graft.core.cards import cards
from graft.core.presets import PRESETS, spelt
from graft.errors import nearest
from graft.recipe.settings import Settings, filled, problems_of


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
        expanded = _expanded(entry, raw, notices)
        for part in expanded:
            method, wrong = _checked(part, prefix, fill=not goes_on)
            problems |= wrong
            methods.append(method)
        if len(expanded) > 1 and len(entry) > 1:
            own = ", ".join(f"{{name: {part['name']}, ...}}" for part in expanded)
            problems[prefix] = f"= {entry['name']} is several methods; to change their settings write [{own}]"
    if not entries and not goes_on:
        problems["method"] = "is an empty list; `graft methods` lists the names"
    if not problems:
        raw["method"] = methods if isinstance(given, list) or len(methods) > 1 else methods[0]
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


def _expanded(entry: Settings, raw: Settings, notices: list[str]) -> list[Settings]:
    """Return the methods that a preset stands for, and set the preset's other keys in `raw`."""
    name = entry["name"]
    known = name if name in cards() else spelt(name)
    if known not in PRESETS:
        return [entry | {"name": known}]
    preset = PRESETS[known]
    applied = []
    for key, setting in preset.others.items():
        section, _, leaf = key.rpartition(".")
        group = raw.setdefault(section, {}) if section else raw
        if isinstance(group, dict) and leaf not in group:
            group[leaf] = setting
            applied.append(f"{key}={setting}")
    additions = (", ".join(applied) or "your settings") if preset.others else ""
    notices.append(f"{name} is method {preset.words}" + (f", and {additions}" if additions else ""))
    if len(preset.methods) > 1:
        return [dict(method) for method in preset.methods]
    return [preset.methods[0] | {key: value for key, value in entry.items() if key != "name"}]


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
