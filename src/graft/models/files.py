"""Find, check and open a model folder or a GGUF file, before any class of transformers is asked.

In a folder only config.json and safetensors are read, and we open the weights ourselves: no pickle, no code
from the folder, no adapter that it points at. What cannot be trusted is refused, by name.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from graft import seedling, storage
from graft.errors import GraftError, ModelError, Notice, UsageError, listed, nearest, notice
from graft.formats import bnb, gguf_file, int4, refuse_pickle
from graft.models.claims import require_plausible
from graft.models.mapped import mapped
from graft.models.unchanged import Comparison
from graft.quant.hf import METHOD, GraftQuantConfig
from graft.quant.scheme import Scheme

BNB = "bitsandbytes"
# Keys that make transformers fetch or run code of others.
FOREIGN = (
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # all that is ever fetched of a model


@dataclass
class ModelFiles:
    """An opened model folder or GGUF file.

    config: as transformers has it, without quantisation.  state: key -> slice of a mapped file, or tensor.
    quantisation: how the weights are packed already (`packed`), or are to be packed; None: neither.
    comparison: of the files with the digests beside them; who uses the weights waits for it.
    """

    folder: Path
    config: PreTrainedConfig
    state: dict[str, Any]
    quantisation: GraftQuantConfig | None
    packed: bool
    comparison: Comparison = field(init=False)


def open_files(path: str | Path, scheme: Scheme | None, *, plain: bool = False) -> ModelFiles:
    """Find a folder, a GGUF file, a hub id or "seedling", and open what is in it.

    plain: decode the blocks of a GGUF file, even those that a packed base could keep as they are.
    """
    folder = find(path)
    comparison = Comparison(folder)
    try:
        opened = _opened(folder, scheme, plain=plain)
    except Exception:
        comparison.wait()  # files that were changed are the cause
        raise
    opened.comparison = comparison
    return opened


def _opened(folder: Path, scheme: Scheme | None, *, plain: bool) -> ModelFiles:
    config = _config(folder)
    wanted = None if scheme is None else GraftQuantConfig(scheme.name, scheme.block, scheme.double)
    if folder.suffix == gguf_file.SUFFIX and folder.is_file():
        blocks = None if plain else gguf_file.packed(folder, config)
        if blocks is not None:
            state, keywords = blocks
            stored_as = GraftQuantConfig(**keywords)
            if scheme in (None, stored_as.kind()):
                return ModelFiles(folder, config, state, stored_as, packed=True)
        return ModelFiles(folder, config, gguf_file.state(folder, config), wanted, packed=False)
    refuse_pickle(folder)
    packed = quantisation(folder)
    method = _method(folder, packed, scheme)
    state = tensors(folder)
    if method is not None:
        return _packed(folder, config, state, packed, method)
    return ModelFiles(folder, config, state, wanted, packed=False)


def _packed(
    folder: Path, config: PreTrainedConfig, state: dict[str, Any], packed: dict[str, Any], method: str
) -> ModelFiles:
    """Return an opened folder whose weights are packed.  packed: its quantization_config."""
    try:
        if method == METHOD:
            how = GraftQuantConfig.from_dict(packed)
        else:
            state, keywords = bnb.convert(state) if method == BNB else int4.convert(state, packed)
            how = GraftQuantConfig(**keywords)
    except GraftError:
        raise
    except Exception as error:  # what a strange quantization_config provokes is different each time
        raise ModelError(
            f"{folder} is not packed as its quantization_config says: {first_line(error)}",
            f"weights and settings of {method}",
            "download or save the model again",
        ) from error
    return ModelFiles(folder, config, state, how, packed=True)


def read_config(path: str | Path) -> PreTrainedConfig:
    """Return the config of a folder, a hub id or "seedling"; of a hub id only that file is fetched."""
    return _config(find(path, ["config.json", "tokenizer_config.json"]))


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder; a GGUF file is its own."""
    if folder.is_file():
        return [folder]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # opening them has given the same
        return [folder / name for name in sorted(_weight_files(folder))]


def find(path: str | Path, files: Sequence[str] = FILES) -> Path:
    """Return the local folder of a path, a hub id or "seedling", or the GGUF file itself.

    files: patterns of what is downloaded of a hub id: no pickles, no code.
    """
    folder = seedling.FOLDER if str(path) == "seedling" else Path(path).expanduser()
    # Not the methods of a path, which raise for a name that no disk can have.
    if os.path.isdir(folder) or (folder.suffix == gguf_file.SUFFIX and os.path.isfile(folder)):
        return folder
    if os.path.exists(folder):
        raise ModelError(
            f"{path} is a file",
            "a model folder (config.json, model.safetensors), a .gguf file or a hub id",
            "name the folder that it lies in",
        )
    parent = folder.parent if os.path.isdir(folder.parent) else Path()
    others = sorted(str(f) for f in parent.iterdir() if (f / "config.json").exists())
    others += [] if "/" in str(path) else ["seedling"]
    near = f"nearest: {', '.join(nearest(str(folder), others))}" if others else "check the spelling"
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(path))
    if not is_hub_id or ("/" in str(path) and os.path.isdir(folder.parent)):
        raise ModelError(f"there is no folder {path}", "a model folder, a hub id or 'seedling'", near)
    return _download(str(path), near, files)


def _download(hub_id: str, near: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # late: it brings a network client

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=list(files), ignore_patterns=["*/*"], etag_timeout=5)
        )
    except Exception as error:  # of many libraries: network, disk, rights, unknown names
        given = f"{hub_id} is not a folder here, and it could not be downloaded ({first_line(error)})"
        raise ModelError(given, "a model folder, a hub id or 'seedling'", near) from error


def first_line(error: BaseException) -> str:
    """Return the first line of somebody else's error."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        problem = "" if isinstance(value, dict) else f"it holds {type(value).__name__}"
    except RecursionError:
        problem = "it is nested too deeply"
    except (ValueError, OSError) as error:
        problem = first_line(error)
    if problem:
        raise ModelError(
            f"{file} is not a JSON object: {problem}",
            "a file as transformers writes it",
            "download or save the model again",
        )
    found: dict[str, Any] = value
    return found


def quantisation(folder: Path) -> dict[str, Any]:
    """Return how a folder says its weights are packed: `quantization_config`, or the file of AutoGPTQ."""
    if folder.is_file():
        return {}
    config = read_object(folder / "config.json").get("quantization_config") or {}
    if not isinstance(config, dict):
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config is {config!r}", "an object", "download it again"
        )
    older = folder / "quantize_config.json"
    if not config and older.exists():
        config = {"quant_method": "gptq", **read_object(older)}
    return dict(config)


def _config(folder: Path) -> PreTrainedConfig:
    if folder.is_file():
        return _built(folder, gguf_file.config(folder))
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise ModelError(
                f"{folder} is an adapter",
                "a model folder",
                f"load its base, then base.load_adapter({str(folder)!r}, name)",
            )
        gguf = next(folder.glob(f"*{gguf_file.SUFFIX}"), None)
        raise ModelError(
            f"{folder} has no config.json",
            "a model folder as transformers writes it",
            f"did you mean {gguf}?"
            if gguf
            else "name the folder that holds config.json and model.safetensors",
        )
    storage.require_unchanged(folder, ModelError, lambda name: name == "config.json")
    facts = _settings(folder / "config.json")
    of_tokenizer = folder / "tokenizer_config.json"
    asked = {
        "config.json": read_object(folder / "config.json") | facts,
        of_tokenizer.name: read_object(of_tokenizer) if of_tokenizer.exists() else {},
    }
    for file, keys in asked.items():
        foreign = [key for key in FOREIGN if keys.get(key)]
        if foreign:
            raise ModelError(
                f"{folder / file} asks for its own code ({', '.join(foreign)})",
                "an architecture that transformers has",
                f"if model_type {facts.get('model_type')!r} is one, delete {foreign[0]} from {file}",
            )
    require_plausible(folder / "config.json", facts)
    model_type = str(facts.get("model_type", ""))
    if model_type not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"{folder} has model_type {model_type!r}",
            "an architecture of the installed transformers",
            f"nearest: {', '.join(nearest(model_type, CONFIG_MAPPING_NAMES))}",
        )
    return _built(folder / "config.json", facts)


def _settings(file: Path) -> dict[str, Any]:
    """Return what config.json says, by transformers' own reader: it writes infinity in a way of its own."""
    read_object(file)  # raises for a file that is no JSON object
    try:
        settings, _ = PreTrainedConfig.get_config_dict(str(file.parent), local_files_only=True)
    except Exception as error:  # it reads what stands there as it expects it
        raise ModelError(
            f"{file}: {first_line(error)}",
            "a file as transformers writes it",
            "compare with the original model",
        ) from error
    return settings


def _built(file: Path, facts: dict[str, Any]) -> PreTrainedConfig:
    try:
        plain = {key: value for key, value in facts.items() if key != "quantization_config"}
        return CONFIG_MAPPING[facts["model_type"]].from_dict(plain)
    except Exception as error:  # configs validate themselves, each with errors of its own
        raise ModelError(
            f"{file}: {first_line(error.__cause__ or error)}",
            f"a config of {facts['model_type']}",
            "compare with the original model",
        ) from error


def _method(folder: Path, packed: dict[str, Any], scheme: Scheme | None) -> str | None:
    """Return how the folder is quantised: None, "graft", "bitsandbytes" or one of `int4.FORMATS`."""
    four_or_eight = packed.get("load_in_4bit") or packed.get("load_in_8bit")
    method = BNB if four_or_eight else packed.get("quant_method")
    if method and scheme is not None:
        raise UsageError(
            f"quant={scheme.name} for {folder}, which is quantised already ({method})",
            "a model in 16 or 32 bits",
            "leave quant out, or start from the original model",
        )
    known = (METHOD, BNB, *int4.FORMATS)
    if method not in (None, *known):
        raise ModelError(
            f"{folder} is quantised with {method}",
            f"one of {', '.join(known)}",
            "load the original model with quant=",
        )
    return method


def tensors(folder: Path) -> dict[str, Any]:
    """Return {key: slice of a mapped file} of every tensor in a folder."""
    names = _weight_files(folder)
    missing = sorted(name for name in names if not os.path.exists(folder / name))  # False for any name
    if missing or not names:
        what = f"has no {', '.join(missing[:3])}" if missing else "has no weights"
        raise ModelError(
            f"{folder} {what}",
            f"{WHOLE}, or all files that {INDEX} lists",
            "download or save the model again",
        )
    state: dict[str, Any] = {}
    for name in sorted(names):
        try:
            file = safe_open(folder / name, framework="pt")
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            state |= mapped(slices, folder / name)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder / name} cannot be read: {first_line(error)}",
                "a whole safetensors file",
                "download or save the model again",
            ) from error
    return state


def _weight_files(folder: Path) -> set[str]:
    """Return the names of the files that hold the weights: those that transformers would load.

    What config.json names comes first, then the whole file, then the shards of an index. In a folder with
    none of these, all safetensors files count that are no adapter.
    """
    named = str(read_object(folder / "config.json").get("transformers_weights") or "")
    _require_inside(named, folder / "config.json", "delete transformers_weights from config.json")
    found = [named] if named else [file for file in (WHOLE, INDEX) if (folder / file).exists()]
    if not found:
        return {file.name for file in folder.glob("*.safetensors") if not file.name.startswith("adapter")}
    if found == [WHOLE, INDEX] and (unused := _shards(folder / INDEX) - {WHOLE}):
        files = listed(sorted(unused), 1)
        notice(f"{folder}: {WHOLE} is loaded, as transformers does; {INDEX} and {files} are not used")
    return _shards(folder / found[0]) if found[0].endswith(".index.json") else {found[0]}


def _shards(index: Path) -> set[str]:
    """Return the names of the files that an index lists; the index itself where it is missing."""
    if not os.path.exists(index):
        return {index.name}
    names = read_object(index).get("weight_map", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"{index}: weight_map does not map names to files",
            "the file of each tensor",
            "download the index again",
        )
    for name in set(names.values()):
        _require_inside(name, index, "download the index again")
    return set(names.values())


def _require_inside(name: str, file: Path, remedy: str) -> None:
    """Raise ModelError where a file names weights outside its folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ModelError(f"{file} names the weights {name!r}", "a file inside the folder", remedy)
