"""The words of other trainers, understood with a notice: `learning_rate` is train.lr, `load_in_4bit` is quant: nf4, and so on.

One canonical name per idea; what is listed here may stand at the top of a recipe, in its section, or on the command line.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from graft.recipe.text import value

Settings = dict[str, Any]

_OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
}  # fmt: skip
_SCHEDULES = {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"}
_TARGETS = {"all": "all-linear", True: "all-linear"}


def _if_true(word: str) -> Callable[[Any], Any]:
    return lambda given: word if given is True else None


# word -> (canonical key, how its value translates; a translation of None means that nothing has to be set)
SYNONYMS: dict[str, tuple[str, Any]] = {
    "model_name_or_path": ("model", None), "base_model": ("model", None), "torch_dtype": ("dtype", {"bfloat16": "bf16", "float32": "fp32"}),
    "bf16": ("dtype", {True: "bf16", False: "fp32"}), "load_in_4bit": ("quant", _if_true("nf4")),
    "load_in_8bit": ("quant", _if_true("int8")), "bnb_4bit_quant_type": ("quant", None),
    "bnb_4bit_use_double_quant": ("quant", lambda given: None), "output_dir": ("output", None),
    "resume_from_adapter": ("adapter", None), "adapter_name_or_path": ("adapter", None),
    "dataset": ("data.train", None), "train_file": ("data.train", None), "dataset_name": ("data.train", None),
    "eval_dataset": ("data.eval", None), "validation_file": ("data.eval", None), "val_size": ("data.eval", None),
    "val_set_size": ("data.eval", None), "max_seq_length": ("data.max_length", None), "max_seq_len": ("data.max_length", None),
    "cutoff_len": ("data.max_length", None), "sequence_len": ("data.max_length", None), "model_max_length": ("data.max_length", None),
    "packing": ("data.pack", None), "sample_packing": ("data.pack", None), "chat_template": ("data.template", None),
    "max_samples": ("data.limit", None), "max_train_samples": ("data.limit", None),
    "learning_rate": ("train.lr", None), "num_train_epochs": ("train.epochs", float), "num_epochs": ("train.epochs", float),
    "per_device_train_batch_size": ("train.micro_batch_size", None), "lr_scheduler_type": ("train.schedule", _SCHEDULES),
    "lr_scheduler": ("train.schedule", _SCHEDULES), "warmup_ratio": ("train.warmup", None), "optim": ("train.optimizer", _OPTIMIZERS),
    "adam_epsilon": ("train.eps", None), "max_grad_norm": ("train.clip", None), "neftune_noise_alpha": ("train.neftune_alpha", None),
    "torch_compile": ("train.compile", None), "logging_steps": ("train.log_every", None), "save_steps": ("train.save_every", None),
    "save_total_limit": ("train.keep", None), "eval_steps": ("train.eval_every", None),
    "early_stopping_patience": ("train.patience", None), "max_steps": ("train.max_steps", None), "seed": ("train.seed", None),
    "weight_decay": ("train.weight_decay", None), "gradient_checkpointing": ("train.gradient_checkpointing", None),
    "per_device_eval_batch_size": ("evaluate.batch_size", None), "max_eval_samples": ("evaluate.limit", None),
    "lora_r": ("method.r", None), "lora_rank": ("method.r", None), "lora_alpha": ("method.lora_alpha", None),
    "lora_dropout": ("method.lora_dropout", None), "lora_target": ("method.target_modules", _TARGETS),
    "lora_target_modules": ("method.target_modules", _TARGETS), "target_modules": ("method.target_modules", _TARGETS),
    "lora_target_linear": ("method.target_modules", _TARGETS), "modules_to_save": ("method.modules_to_save", None),
    "use_rslora": ("method.use_rslora", None), "use_dora": ("method.use_dora", None),
    "init_lora_weights": ("method.init_lora_weights", None), "finetuning_type": ("method.name", None),
    "gradient_accumulation_steps": ("train.batch_size", None),
}  # fmt: skip


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
            # A word inside its own section: train: {learning_rate: ...}; the canonical key itself is no synonym there.
            foreign = {k for k in inner if k in SYNONYMS and SYNONYMS[k][0] != f"{section}.{k}"}
            renames += [(f"{section}.{k}", k, v) for k, v in inner.items() if k in foreign]
            result[section] = {k: copy.deepcopy(v) for k, v in inner.items() if k not in foreign}
        else:
            result[section] = {"name": inner} if section == "method" and isinstance(inner, str) else copy.deepcopy(inner)
    words = {word for _, word, _ in renames}
    for written, word, given in renames:
        key, translate = SYNONYMS[word]
        if word == "gradient_accumulation_steps" or (word == "load_in_4bit" and "bnb_4bit_quant_type" in words):
            continue
        setting = translate.get(given, given) if isinstance(translate, dict) and _plain(given) else given
        setting = translate(given) if callable(translate) and _plain(given) else setting
        if setting is None and given is not None:
            continue
        _set_once(result, key, setting, written, problems)
        notices.append(f"{written} is {key} here")
    _accumulate(result, renames, problems, notices)
    return result


def _accumulate(result: Settings, renames: list[tuple[str, str, Any]], problems: dict[str, str], notices: list[str]) -> None:
    """batch_size from rows per forward and the number of forwards, as other trainers count."""
    words = {word: given for _, word, given in renames}
    train = result.get("train", {})
    if not words.keys() & {"gradient_accumulation_steps", "per_device_train_batch_size"} or not isinstance(train, dict):
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


def _plain(given: Any) -> bool:
    return isinstance(given, str | int | float | bool)
