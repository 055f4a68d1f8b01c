"""Turn a folder, a GGUF file, a hub id or "seedling" into a Base.

`files` finds and opens them; here the weights stream into a model and are quantised one tensor at a time. A
model that cannot be trusted is refused: weights that are missing, of another shape, or not finite.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.configuration_utils import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import is_accelerate_available
from transformers.utils import logging as transformers_logging

from graft.base.base import Base
from graft.base.fingerprint import count
from graft.core.anatomy import predicts_hidden
from graft.core.by_name import answered
from graft.core.site import shown
from graft.errors import GraftError, ModelError, UsageError, listed, notice, one_of
from graft.models.claims import require_held
from graft.models.dtype import AUTO, file_dtype, fitting, rounded, stored_dtype
from graft.models.files import ModelFiles, first_line, open_files, read_object, weight_files
from graft.models.tokenizer import tokenizer_of
from graft.quant import is_packed
from graft.quant.finite import is_moderate, require_finite
from graft.quant.replace import DAMAGED, unpacked_sizes
from graft.quant.scheme import Scheme

GENERATION = "generation_config.json"
NOTABLE = 0.05  # a share of the weights that quantising leaves as they are, above which we say so
MODEL_MAPPING = modeling_auto.MODEL_MAPPING
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
TASKS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "encoder": MODEL_MAPPING,
}


@answered
def load(
    path: str | Path,
    quant: str | None = None,
    dtype: str | None = AUTO,
    *,
    group_size: int = 0,
    task: str | None = None,
    device: str | torch.device | None = None,
) -> Base:
    """Load a pretrained model, frozen, with its tokenizer.

    path: a folder, a GGUF file, a hub id or "seedling".
    quant: how to pack the weights while they load. nf4 and fp4 have double quantisation; int8 has one absmax
    per row; int4, int3, int2 and int8g have a scale and a minimum for each `group_size` weights of a row (0:
    32).
    None keeps weights as they are stored: what Graft or bitsandbytes quantised stays as it is; GPTQ, AWQ and
    compressed-tensors become int4; GGUF files become int4 if all their matrices are Q4_0 or Q4_1, int8g if
    they are Q8_0, and are decoded otherwise. "none" decodes every GGUF file.
    dtype: bf16, fp32 or fp16, of computation and of weights that are not packed. "auto", or None: bf16 or
    fp32, whichever multiplies faster here (`graft doctor --bench`) and fits; exports stay in 16 bits then, if
    the files are.
    task: causal, masked, seq2seq or encoder, to load another class than the folder names; a head that the
    folder does not have is then created untrained.
    device: by default the GPU if there is one.
    Raises ModelError for files that cannot be read or trusted and for a model that does not run, UsageError
    for a wrong argument. A Notice names tensors that are not used, and weights that stay unpacked.
    """
    _require_path(path)
    asked = None if dtype in (None, AUTO) else dtype_of(str(dtype))
    scheme = None if quant in (None, "none") else Scheme(str(quant), group_size)
    if task is not None:
        one_of("task", task, TASKS)
    with quiet():
        opened = open_files(path, scheme, plain=quant == "none")
        with opened.comparison:
            cls = model_class(opened.config, task)
            require_held(cls, opened.config, opened.state, opened.folder, packed=opened.packed)
            place = device_of(device)
            chosen = asked or DTYPES[fitting(cls, opened, place.type)]
            model = _stream(cls, opened, chosen, place, fresh_head=task is not None)
            if model.can_generate() and (opened.folder / GENERATION).exists():
                model.generation_config = _generation(opened.folder)
            narrow = None if asked else file_dtype(opened, chosen)
            base = Base(
                model,
                tokenizer_of(opened.folder, model),
                str(path),
                file_dtype=narrow,
                files=weight_files(opened.folder),
                rounded=rounded(opened, chosen),
            )
        base.probe()
        return base


def _require_path(path: object) -> None:
    """Raise UsageError for what is no place of a model."""
    if isinstance(path, torch.nn.Module):
        raise UsageError(
            f"graft.load was given a model ({type(path).__name__})",
            "its place",
            "use graft.Base(model, tokenizer)",
        )
    if not isinstance(path, str | Path) or not str(path):
        given = f"graft.load({path!r:.60})"
        raise UsageError(
            given, 'a folder, a GGUF file, a hub id or "seedling"', 'for example graft.load("seedling")'
        )


def _generation(folder: Path) -> GenerationConfig:
    """Return how a model's folder wants texts to be written. Raises ModelError."""
    facts = read_object(folder / GENERATION)
    tokens = {key: value for key, value in facts.items() if key.endswith("_token_id") and value is not None}
    for key, value in tokens.items():
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise ModelError(
                f"{folder / GENERATION}: {key} is {value!r}", "an id of a token", "download the file again"
            )
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # it validates itself, with errors of its own
        raise ModelError(
            f"{folder / GENERATION}: {first_line(error)}",
            "settings of generation as transformers writes them",
            "delete the file, or download it again",
        ) from error


def dtype_of(dtype: str) -> torch.dtype:
    """Return torch's dtype of a word of DTYPES. Raises UsageError."""
    one_of("dtype", dtype, (*DTYPES, AUTO))
    return DTYPES[dtype]


def device_of(device: str | torch.device | None) -> torch.device:
    """Return the device of that name; None means the GPU where there is one. Raises UsageError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device={device!r}: {first_line(error)}",
            "a device this torch can reach",
            "use 'cpu', or leave device out",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing inside the block: we say in errors what it found."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def model_class(config: PreTrainedConfig, task: str | None) -> type[PreTrainedModel]:
    """Return the class that config.json names, or the one transformers has for the task."""
    try:
        plain = MODEL_MAPPING[type(config)]
    except KeyError:
        raise ModelError(
            f"model_type {config.model_type!r}",
            "an architecture with a text model",
            f"use one of {', '.join(TASKS)} models",
        ) from None
    module = sys.modules[(plain[0] if isinstance(plain, tuple) else plain).__module__]
    named = getattr(module, (config.architectures or [""])[0], None)
    if task is None and isinstance(named, type) and issubclass(named, PreTrainedModel):
        return named
    task = task or _usual_task(config)
    if type(config) not in TASKS[task]:
        able = [name for name, mapping in TASKS.items() if type(config) in mapping]
        raise UsageError(
            f"task={task!r} for a {config.model_type} model",
            f"one of {', '.join(able)}",
            "leave task out, or choose another model",
        )
    mapping: Any = TASKS[task]  # transformers types its values as it stores some of them, in pairs
    cls: type[PreTrainedModel] = mapping[type(config)]
    return cls


def is_masked(config: PreTrainedConfig) -> bool:
    """Return whether the model's own class is an encoder that names hidden tokens."""
    return not config.is_encoder_decoder and predicts_hidden(model_class(config, None), config)


def _usual_task(config: PreTrainedConfig) -> str:
    if config.is_encoder_decoder:
        return "seq2seq"
    decoder = getattr(config, "is_decoder", False)  # BERT and models like it are in both mappings
    order = ("causal", "masked", "encoder") if decoder else ("masked", "causal", "encoder")
    return next(task for task in order if type(config) in TASKS[task])


def _stream(
    cls: type[PreTrainedModel],
    opened: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    *,
    fresh_head: bool,
) -> PreTrainedModel:
    config = opened.config
    keywords: dict[str, Any] = {}
    # Weights that are packed need no copy in fp32 first: they are read as they are stored.
    narrow = opened.quantisation is not None and not opened.packed and not fresh_head
    reading = stored_dtype(opened) or dtype if narrow and dtype == torch.float32 else dtype
    if opened.quantisation is not None and opened.packed:
        config.quantization_config = opened.quantisation.to_dict()
    elif opened.quantisation is not None:
        keywords["quantization_config"] = opened.quantisation
    if device.type != "cpu" and is_accelerate_available():
        keywords["device_map"] = {"": device}  # each tensor is quantised on the device it goes to
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a fresh head is the same in every process
            loaded: Any = cls.from_pretrained(
                None,
                config=config,
                state_dict=opened.state,
                dtype=reading,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that we can name them
                output_loading_info=True,
                **keywords,
            )
    except GraftError:
        raise
    except Exception as error:  # transformers and the model's own code, whose checks raise anything
        raise ModelError(
            f"{opened.folder} did not load as {cls.__name__}: {first_line(error)}",
            "weights and config.json of one model",
            "compare with the original folder",
        ) from error
    model, info = loaded
    _require_table(model)
    model.config.name_or_path = str(opened.folder)
    _complete(model, info, opened.folder, fresh_head)
    _name_unused(model, info, opened.folder, fresh_head)
    _require_moderate(model, opened.folder)
    if opened.quantisation is not None:
        _name_unpacked(model, opened.quantisation.kind(), dtype)
    if reading != dtype:
        model._apply(lambda tensor: tensor.to(dtype) if tensor.dtype == reading else tensor)
        model.config.dtype = dtype
    frozen: PreTrainedModel = model.to(device).requires_grad_(False).eval()
    return frozen


def _require_moderate(model: PreTrainedModel, folder: Path) -> None:
    """Raise ModelError for weights that are not finite, or so large that the first product is not."""
    large = [(name, p) for name, p in model.named_parameters() if not is_moderate(p)]
    if not large:
        return
    narrow = any(p.dtype == torch.float16 for _, p in large)
    advice = "load the model with dtype bf16 or fp32, or " + DAMAGED if narrow else DAMAGED
    require_finite(large, ModelError, advice, folder)
    _, tensor = large[0]
    size, word = float(tensor.detach().abs().max()), str(tensor.dtype).removeprefix("torch.")
    raise ModelError(
        f"{folder}: {listed([name for name, _ in large], 3)} holds weights of up to {size:.3g}, near the "
        f"largest number of {word}, {torch.finfo(tensor.dtype).max:.3g}",
        "weights whose products are finite",
        advice,
    )


def _require_table(model: PreTrainedModel) -> None:
    """Raise ModelError for a model that does not look token ids up in one table."""
    try:
        table: Any = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(getattr(table, "weight", None), torch.Tensor):
        raise ModelError(
            f"{type(model).__name__} has no table of embeddings",
            "a model that reads token ids",
            "choose another model",
        )


def _complete(model: PreTrainedModel, info: dict[str, Any], folder: Path, fresh_head: bool) -> None:
    """Raise ModelError for weights that the folder lacks, or has in another shape."""
    wrong = [
        f"{name} is {tuple(stored)} in the file and {tuple(expected)} by config.json"
        for name, stored, expected in sorted(info["mismatched_keys"])
    ]
    if wrong:
        raise ModelError(
            f"{folder}: {listed(wrong, 1)}",
            "weights and config.json of one model",
            "compare with the original folder",
        )
    missing = sorted(info["missing_keys"])
    if fresh_head:
        backbone = model.base_model_prefix + "."
        missing = [key for key in missing if key.startswith(backbone) and ".pooler." not in key]
        if model.base_model is model:
            missing = [key for key in sorted(info["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"{folder} has no {listed(missing, 1)}, which {type(model).__name__} needs",
            "all weights of the model",
            "download the whole model, or pass task= to create an untrained head",
        )


def _name_unused(model: PreTrainedModel, info: dict[str, Any], folder: Path, fresh_head: bool) -> None:
    """Give notice of tensors in the folder that the model has no place for.

    fresh_head: the head in the folder is another one by intention.
    """
    unused = sorted(info["unexpected_keys"])
    if fresh_head:
        unused = [key for key in unused if key.startswith(model.base_model_prefix + ".")]
    if unused:
        notice(
            f"{folder} holds {len(unused):,} tensors that {type(model).__name__} has no place for, and which "
            f"are not loaded: {listed(unused, 2)} (of another model's config.json, or of an adapter?)"
        )


def _name_unpacked(model: PreTrainedModel, scheme: Scheme, dtype: torch.dtype) -> None:
    """Give notice of a notable share of the blocks' weights that cannot be packed.

    Raises UsageError if none is.
    """
    sizes = unpacked_sizes(model)
    if sizes and not any(map(is_packed, model.modules())):
        raise UsageError(
            f"quant={scheme.name!r} for {type(model).__name__}, in whose blocks nothing can be packed",
            "blocks of linears or experts",
            "leave quant out",
        )
    share = sum(sizes.values()) / count(model)
    if share > NOTABLE:
        word = next(word for word, known in DTYPES.items() if known == dtype)
        largest = sorted(sizes, key=lambda name: -sizes[name])
        where = listed(shown(largest).split(", "), 3)
        notice(f"{share:.0%} of the weights stay in {word}, not in {scheme.name}: {where}")
