"""Graft: fine-tune language models on the machine you have.

    base = graft.load("path-or-hub-id", quant="nf4")
    sql = base.attach("sql", graft.LoRA(r=16))
    graft.train(base, sql, data="sql.jsonl", epochs=2)

Names are imported when they are first used, so `import graft` costs milliseconds. Every method's class is
here under its own name (`graft methods` lists them). There is no table of them: the files of graft/methods
are read.
"""

import importlib
import sys

__version__ = "0.1.0"

# name: the module that defines it. No module of the root has one of these names and could hide it.
# Type checkers and editors read __init__.pyi, which `python docs/write_stub.py` writes from this table.
_HOME = {
    "Adapter": "base.adapter",
    "Base": "base.base",
    "Completion": "generate.request",
    "GraftError": "errors",
    "Insert": "core.insert",
    "Method": "core.method",
    "Notice": "errors",
    "Observer": "training.observer",
    "Plan": "planning.estimate",
    "Recipe": "recipe",
    "RunResult": "runs.result",
    "Site": "core.site",
    "Stage": "stages.stage",
    "blend": "combine.blend",
    "export": "shipping.export",
    "extract": "combine.extract",
    "load": "models.load",
    "plan": "planning.plan",
    "run": "runs.chain",
    "sweep": "runs.sweep",
    "train": "runs.run",
}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return sorted([*_HOME, *_methods()])
    home = None if name.startswith("_") else _HOME.get(name) or _methods().get(name)
    if home is None:
        # Python shows the nearest of the public names with it.
        raise AttributeError(
            f"module 'graft' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    value = getattr(importlib.import_module(f"graft.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, *_methods(), "__version__"])


def _methods() -> dict[str, str]:
    """The class of every method, with its module."""
    from graft.core.cards import cards  # late: `import graft` alone reads no files

    return {card.cls: f"methods.{card.name}" for card in cards().values()}
