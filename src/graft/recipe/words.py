"""Translate the words of other trainers: `learning_rate` is train.lr, `load_in_4bit` is quant: nf4.

Each translation gives a notice. Graft has one name per idea. The words listed here may be written at the top
of a recipe, in the section of our key, or on the command line.
"""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from graft.core.cards import cards
from graft.core.presets import PRESETS
from graft.recipe.text import value
from graft.recipe.tree import explain

Settings = dict[str, Any]

# our key: their words
_WORDS = {
    "model": "model_name_or_path base_model",
    "dtype": "torch_dtype bf16",
    "quant": "load_in_4bit load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant",
    "adapter": "adapter_name_or_path",
    "output": "output_dir",
    "data.train": "dataset dataset_name train_file",
    "data.eval": "eval_dataset validation_file val_size val_set_size",
    "data.max_length": "max_seq_length max_seq_len cutoff_len sequence_len model_max_length",
    "data.pack": "packing sample_packing",
    "data.template": "chat_template",
    "data.limit": "max_samples max_train_samples",
    "train.lr": "learning_rate",
    "train.epochs": "num_train_epochs num_epochs",
    "train.max_steps": "max_steps",
    "train.micro_batch_size": "per_device_train_batch_size",
    "train.batch_size": "gradient_accumulation_steps",
    "train.schedule": "lr_scheduler_type lr_scheduler",
    "train.warmup": "warmup_ratio",
    "train.optimizer": "optim",
    "train.weight_decay": "weight_decay",
    "train.eps": "adam_epsilon",
    "train.clip": "max_grad_norm",
    "train.neftune_alpha": "neftune_noise_alpha",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.compile": "torch_compile",
    "train.seed": "seed",
    "train.save_every": "save_steps",
    "train.keep": "save_total_limit",
    "train.log_every": "logging_steps",
    "train.eval_every": "eval_steps",
    "train.patience": "early_stopping_patience",
    "train.report_to": "report_to",
    "evaluate.batch_size": "per_device_eval_batch_size",
    "evaluate.limit": "max_eval_samples",
    "method.name": "finetuning_type",
    "method.r": "lora_r lora_rank",
    "method.lora_alpha": "lora_alpha",
    "method.lora_dropout": "lora_dropout",
    "method.target_modules": "target_modules lora_target lora_target_modules lora_target_linear",
    "method.modules_to_save": "modules_to_save",
    "method.use_rslora": "use_rslora",
    "method.use_dora": "use_dora",
    "method.init_lora_weights": "init_lora_weights",
}
SYNONYMS = {word: key for key, words in _WORDS.items() for word in words.split()}

NAMED = ("method", "stage")  # groups of keys that are a name, or a name with settings
_NOTHING = object()  # a value of theirs for which nothing has to be set here
_VALUES: dict[str, Any] = {
    # our key or their word: their value -> ours
    "dtype": {"bfloat16": "bf16", "float32": "fp32", True: "bf16", False: "fp32"},
    "train.schedule": {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"},
    "train.optimizer": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_32bit": "paged_adamw",
    },
    "method.target_modules": {"all": "all-linear", True: "all-linear"},
    "load_in_4bit": {True: "nf4", False: _NOTHING},
    "load_in_8bit": {True: "int8", False: _NOTHING},
    "bnb_4bit_use_double_quant": {True: _NOTHING, False: _NOTHING},  # nf4 and fp4 always have it
}


def canonical(raw: Settings, overrides: Iterable[str], notices: list[str]) -> tuple[Settings, dict[str, str]]:
    """Return settings with our keys only, changed by `key=value` words, and the problems by key.

    notices: a list to which is added how words of other trainers were understood.
    """
    problems: dict[str, str] = {}
    ours = _renamed(raw, problems, notices)
    changes: Settings = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        try:
            if not equals or not key or not all(key.split(".")):
                raise yaml.YAMLError
            _put(changes, key, value(text))
        except (yaml.YAMLError, ValueError):
            problems[word] = "does not change a setting; write key=value, for example train.lr=1e-4"
        except TypeError:
            problems[key] = "is set both as a value and as a group of keys"
    _merge(ours, _renamed(changes, problems, notices))
    return ours, problems


class Foreign(NamedTuple):
    """A word of another trainer in a recipe.  written: the word with the section in which it is written."""

    written: str
    word: str
    value: Any


def _renamed(raw: Settings, problems: dict[str, str], notices: list[str]) -> Settings:
    """Return a copy in which every word of another trainer has become our key."""
    settings, foreign = _separated(raw)
    words = {entry.word for entry in foreign}
    for written, word, theirs in foreign:
        if word == "gradient_accumulation_steps":
            continue  # `_accumulate` computes the batch size from it
        if word == "load_in_4bit" and "bnb_4bit_quant_type" in words:
            continue  # the other word names the kind of 4 bits
        key = SYNONYMS[word]
        translations = _VALUES.get(word) or _VALUES.get(key, {})
        ours = translations.get(theirs, theirs) if isinstance(theirs, str | bool) else theirs
        if ours is _NOTHING:
            continue
        _set_once(settings, key, ours, written, problems)
        notices.append(f"{written} is {key} here")
    _accumulate(settings, foreign, problems, notices)
    return settings


def _separated(raw: Settings) -> tuple[Settings, list[Foreign]]:
    """Return a copy of the settings under our own keys, and the words of other trainers among them."""
    settings: Settings = {}
    foreign: list[Foreign] = []
    ours = explain()
    for section, inner in raw.items():
        if section in SYNONYMS:
            foreign.append(Foreign(section, section, inner))
        elif section in ("data", "train", "evaluate", "method") and isinstance(inner, dict):
            # In its section, our own key is no foreign word, even if another trainer uses it differently.
            # Neither is a setting of the method (the seed of a decoder, a rate).
            by_method = _settings_of(inner.get("name")) if section == "method" else set()
            theirs = {
                k
                for k in inner
                if k in SYNONYMS
                and SYNONYMS[k] != f"{section}.{k}"
                and f"{section}.{k}" not in ours
                and k not in by_method
            }
            foreign += [Foreign(f"{section}.{k}", k, v) for k, v in inner.items() if k in theirs]
            settings[section] = {k: copy.deepcopy(v) for k, v in inner.items() if k not in theirs}
        elif section in NAMED and isinstance(inner, str):
            settings[section] = {"name": inner}
        else:
            settings[section] = copy.deepcopy(inner)
    return settings, foreign


def _settings_of(method: Any) -> set[str]:
    """Return the names of the settings of a method, or of those of a preset; none for anything else."""
    known = cards()
    preset = PRESETS.get(method) if isinstance(method, str) else None
    named = [one["name"] for one in preset.methods] if preset else [method]
    return {key for name in named if isinstance(name, str) and name in known for key in known[name].settings}


def _accumulate(
    settings: Settings, foreign: list[Foreign], problems: dict[str, str], notices: list[str]
) -> None:
    """Set train.batch_size from rows per forward and number of forwards, as other trainers count."""
    theirs = {entry.word: entry.value for entry in foreign}
    if not theirs.keys() & {"gradient_accumulation_steps", "per_device_train_batch_size"}:
        return
    train = settings.get("train", {})
    if not isinstance(train, dict):
        return
    rows = train.get("micro_batch_size", 2)
    times = theirs.get("gradient_accumulation_steps", 1)
    if type(rows) is not int or type(times) is not int or times < 1:
        problems["gradient_accumulation_steps"] = f"{times!r}: whole numbers of at least 1 are expected"
        return
    if "batch_size" not in train:
        _put(settings, "train.batch_size", rows * times)
        notices.append(f"train.batch_size is {rows * times}: {rows} rows x {times} accumulated forwards")


def _set_once(settings: Settings, key: str, setting: Any, written: str, problems: dict[str, str]) -> None:
    """Set our key to what the word `written` means, unless the recipe sets the key to another value."""
    section, _, leaf = key.rpartition(".")
    group = settings.get(section, {}) if section else settings
    if isinstance(group, dict) and leaf in group and group[leaf] != setting:
        problems[written] = f"contradicts {key}: {group[leaf]!r} there, {setting!r} here"
        return
    try:
        _put(settings, key, setting)
    except TypeError:
        problems[written] = f"cannot be set: {section} is not a group of keys here"


def _put(settings: Settings, key: str, setting: Any) -> None:
    """Set settings[a][b] for the key a.b. Raises TypeError if a is a plain value."""
    *path, leaf = key.split(".")
    for part in path:
        if part in NAMED and isinstance(settings.get(part), str):
            settings[part] = {"name": settings[part]}
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise TypeError(part)
    settings[leaf] = setting


def merged(settings: Settings, changes: Settings) -> Settings:
    """Return a copy of settings with changes merged into it, group by group."""
    result = copy.deepcopy(settings)
    _merge(result, copy.deepcopy(changes))
    return result


def _merge(settings: Settings, changes: Settings) -> None:
    """Merge changes into settings, group by group.

    Another name of a method or a stage drops the settings of the former.
    """
    for key, change in changes.items():
        old = settings.get(key)
        if not isinstance(change, dict) or not isinstance(old, dict) or _another(key, old, change):
            settings[key] = change
        else:
            _merge(old, change)


def _another(key: str, old: Settings, change: Settings) -> bool:
    """Return whether a change names another method or stage than before."""
    return key in NAMED and change.get("name", old.get("name")) != old.get("name")
