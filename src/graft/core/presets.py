"""Presets: words that people use for a method with certain settings, such as `dora` and `qlora`.

They may stand wherever a recipe or a command line names a method. Nothing else knows them: what is stored is
the method with all its settings.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Settings = dict[str, Any]


class Preset(NamedTuple):
    """What a word stands for.

    methods: the method, or several in one adapter.  others: keys of the recipe outside `method`. Each setting
    applies unless it is set otherwise.
    """

    methods: tuple[Settings, ...]
    others: Mapping[str, Any] = MappingProxyType({})

    @property
    def words(self) -> str:
        """The methods with their settings: "lora with use_dora=true"."""
        parts = []
        for settings in self.methods:
            own = _pairs({key: value for key, value in settings.items() if key != "name"})
            parts.append(f"{settings['name']} with {own}" if own else settings["name"])
        return " and ".join(parts)

    def __str__(self) -> str:
        """Return the methods and the other keys: "lora with init_lora_weights=loftq, and quant=nf4"."""
        return self.words + (f", and {_pairs(self.others)}" if self.others else "")


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in settings.items())


def _shown(value: Any) -> str:
    """Return a value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


PRESETS = {
    "dora": Preset(({"name": "lora", "use_dora": True},)),
    "rslora": Preset(({"name": "lora", "use_rslora": True},)),
    "pissa": Preset(({"name": "lora", "init_lora_weights": "pissa"},)),
    "olora": Preset(({"name": "lora", "init_lora_weights": "olora"},)),
    "loftq": Preset(({"name": "lora", "init_lora_weights": "loftq"},), {"quant": "nf4"}),
    "lora_plus": Preset(({"name": "lora", "loraplus_lr_ratio": 16.0},)),
    "qlora": Preset(
        ({"name": "lora", "target_modules": "all-linear"},),
        {"quant": "nf4", "train.optimizer": "paged_adamw_8bit"},
    ),
    "qalora": Preset(
        ({"name": "qa_lora", "target_modules": "all-linear"},),
        {"quant": "int4", "train.optimizer": "paged_adamw_8bit"},
    ),
    "mam": Preset(({"name": "prefix"}, {"name": "parallel"})),
}
# Other spellings, after letters are small and hyphens are underscores.
SPELLINGS = {"lora+": "lora_plus", "loraplus": "lora_plus", "rs_lora": "rslora", "q_lora": "qlora"}


def spelt(name: str) -> str:
    """Return the name of a method or a preset as we write it.

    >>> spelt("DoRA"), spelt("LoRA+"), spelt("ln-tuning")
    ('dora', 'lora_plus', 'ln_tuning')
    """
    plain = name.lower().replace("-", "_")
    return SPELLINGS.get(plain, plain)


def presets_of(method: str) -> dict[str, Preset]:
    """Return the presets whose first method this is, by name."""
    return {name: preset for name, preset in PRESETS.items() if preset.methods[0]["name"] == method}
