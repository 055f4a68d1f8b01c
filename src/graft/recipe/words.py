"""The words of other trainers, understood with a notice: `learning_rate` is train.lr, `load_in_4bit` is quant: nf4.

One canonical name per idea. What is listed here may stand at the top of a recipe, in its section, or on the command
line.
"""

import copy
from collections.abc import Iterable
from typing import Any

import yaml

from graft.core.cards import cards
from graft.recipe.text import value

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
    """Settings with canonical keys only, changed by `key=value` words; and the problems by key. Adds to notices."""
    problems: dict[str, str] = {}
    merged = _renamed(raw, problems, notices)
    changes: Settings = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        try:
            if not equals or not key or not all(key.split(".")):
                raise yaml.YAMLError
            _put(changes, key, value(text))
        except (yaml.YAMLError, ValueError):
            problems[word] = "is no change of a setting; write key=value, for example train.lr=1e-4"
        except TypeError:
            problems[key] = "is set both as a value and as a group of keys"
    _merge(merged, _renamed(changes, problems, notices))
    return merged, problems


def _renamed(raw: Settings, problems: dict[str, str], notices: list[str]) -> Settings:
    """A copy in which every synonym has become its canonical key."""
    result: Settings = {}
    renames: list[tuple[str, str, Any]] = []
    for section, inner in raw.items():
        if section in SYNONYMS:
            renames.append((section, section, inner))
        elif section in ("data", "train", "evaluate", "method") and isinstance(inner, dict):
            # A word inside its own section: train: {learning_rate: ...}; the canonical key itself is no synonym there,
            # nor is what the method calls so itself (the seed of a decoder, a rate of its own).
            own = _settings_of(inner.get("name")) if section == "method" else set()
            foreign = {k for k in inner if k in SYNONYMS and SYNONYMS[k] != f"{section}.{k}" and k not in own}
            renames += [(f"{section}.{k}", k, v) for k, v in inner.items() if k in foreign]
            result[section] = {k: copy.deepcopy(v) for k, v in inner.items() if k not in foreign}
        else:
            result[section] = (
                {"name": inner} if section == "method" and isinstance(inner, str) else copy.deepcopy(inner)
            )
    words = {word for _, word, _ in renames}
    for written, word, given in renames:
        key = SYNONYMS[word]
        known = _VALUES.get(word) or _VALUES.get(key, {})
        setting = known.get(given, given) if isinstance(given, str | bool) else given
        counted_apart = word == "gradient_accumulation_steps"
        if (
            counted_apart
            or setting is _NOTHING
            or (word == "load_in_4bit" and "bnb_4bit_quant_type" in words)
        ):
            continue
        _set_once(result, key, setting, written, problems)
        notices.append(f"{written} is {key} here")
    _accumulate(result, renames, problems, notices)
    return result


def _settings_of(method: Any) -> set[str]:
    """The names of a method's settings; none of what is no method."""
    known = cards()
    return set(known[method].settings) if isinstance(method, str) and method in known else set()


def _accumulate(
    result: Settings, renames: list[tuple[str, str, Any]], problems: dict[str, str], notices: list[str]
) -> None:
    """batch_size from rows per forward and the number of forwards, as other trainers count."""
    words = {word: given for _, word, given in renames}
    train = result.get("train", {})
    if not words.keys() & {"gradient_accumulation_steps", "per_device_train_batch_size"} or not isinstance(
        train, dict
    ):
        return
    rows, times = train.get("micro_batch_size", 2), words.get("gradient_accumulation_steps", 1)
    if type(rows) is not int or type(times) is not int or times < 1:
        problems["gradient_accumulation_steps"] = f"{times!r}: whole numbers of at least 1 are expected"
        return
    if "batch_size" not in train:
        _put(result, "train.batch_size", rows * times)
        notices.append(f"train.batch_size is {rows * times}: {rows} rows x {times} accumulated forwards")


def _set_once(result: Settings, key: str, setting: Any, written: str, problems: dict[str, str]) -> None:
    section, _, leaf = key.rpartition(".")
    group = result.get(section, {}) if section else result
    if isinstance(group, dict) and leaf in group and group[leaf] != setting:
        problems[written] = f"contradicts {key}: {group[leaf]!r} there, {setting!r} here"
        return
    try:
        _put(result, key, setting)
    except TypeError:
        problems[written] = f"cannot be set: {section} is not a group of keys here"


def _put(settings: Settings, key: str, setting: Any) -> None:
    """settings[a][b] = setting for key a.b. Raises TypeError where a is a plain value."""
    *path, leaf = key.split(".")
    for part in path:
        if part == "method" and isinstance(settings.get(part), str):
            settings[part] = {"name": settings[part]}
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise TypeError(part)
    settings[leaf] = setting


def _merge(settings: Settings, changes: Settings) -> None:
    """Changes into settings, group by group; another method's name drops the settings of the one before."""
    for key, change in changes.items():
        old = settings.get(key)
        both = isinstance(change, dict) and isinstance(old, dict)
        if both and not (key == "method" and change.get("name", old.get("name")) != old.get("name")):
            _merge(old, change)
        else:
            settings[key] = change
