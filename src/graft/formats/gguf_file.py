"""Open a GGUF file: its settings as a config, its tensors under transformers' names, its tokenizer.

Tensors are decoded when they are asked for, one at a time. Types that we do not write (K and IQ blocks) are
decoded by the `gguf` package. Blocks that a packed base can keep as they are come undecoded on request
(`packed`):

    Q4_1   d·q + m       scale d, minimum m                          int4
    Q4_0   d·(q − 8)     scale d, minimum −8d, codes from 0 to 15    int4
    Q8_0   d·q           scale d, minimum −128d, codes q + 128       int8g

all exact in half precision. A file that we wrote holds its tokenizer.json; for any other, transformers
rebuilds the tokenizer.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import AutoTokenizer

from graft.core.schema import Alpha, fits, in_words, shown
from graft.errors import AdapterError, ModelError
from graft.formats import gguf_names as names
from graft.formats.gguf import BLOCK, FORMS, NAMES, decode, unpack
from graft.kernels.groups import pack_bits

SUFFIX = ".gguf"
SCHEMES = {"q4_0": "int4", "q4_1": "int4", "q8_0": "int8g"}  # names as in graft.quant
PARTS = ("codes", "scale", "minimum")
TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass
class Stored:
    """One tensor in the file; `[...]` decodes it, like a slice of safetensors.

    part: one of PARTS of a packed layer, undecoded, instead.
    """

    tensor: Any
    arch: names.Architecture | None = None
    config: Any = None
    part: str = ""

    @property
    def form(self) -> str | None:
        """Return its type, one of FORMS; None for those that we do not write."""
        return NAMES.get(int(self.tensor.tensor_type))

    def get_dtype(self) -> str:
        """Return its dtype as a slice of safetensors names it."""
        return "U8" if self.part == "codes" else "F16" if self.part else "F32"

    def get_shape(self) -> list[int]:
        """Return the shape of its numbers, the same for all parts of a packed layer."""
        return [int(size) for size in reversed(self.tensor.shape)]

    def __getitem__(self, key: Any) -> Tensor:
        values = _undecoded(self._raw(), str(self.form), self.part) if self.part else self._decoded()
        if self.arch is not None:
            values = names.from_file(values, self.tensor.name, self.arch, self.config)
        return values[key]

    def _decoded(self) -> Tensor:
        from gguf import dequantize  # late: an extra

        if self.form is None:
            return torch.from_numpy(dequantize(self.tensor.data, self.tensor.tensor_type))
        return decode(self._raw(), self.form)

    def _raw(self) -> Tensor:
        values = self.tensor.data.copy()  # the file is mapped for reading only
        return torch.from_numpy(values).view(torch.uint8)


def _undecoded(raw: Tensor, form: str, part: str) -> Tensor:
    """Return a packed layer's codes, scale or minimum; a type without a minimum gets one from its scale."""
    codes, scale, minimum = unpack(raw, form)
    middle = 0 if FORMS[form].minimum else 2 ** (FORMS[form].bits - 1)
    if part == "codes":
        return pack_bits((codes.short() + middle).to(torch.uint8).flatten(1), FORMS[form].bits)
    return scale if part == "scale" else -middle * scale if minimum is None else minimum


def read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return the keys and tensors of a file. Raises ModelError if it is damaged."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{path} cannot be read without the package gguf", "gguf installed", "pip install 'graftlm[gguf]'"
        )
    from gguf import GGUFReader  # late: an extra

    try:
        reader = GGUFReader(path)
        keys = {name: field.contents() for name, field in reader.fields.items()}
        return keys, {tensor.name: Stored(tensor) for tensor in reader.tensors}
    except Exception as error:  # the package checks little: a damaged file fails anywhere in it
        raise ModelError(
            f"{path} cannot be read: {error}", "a whole GGUF file", "download or write it again"
        ) from error


def config(path: Path) -> dict[str, Any]:
    """Return the keywords of transformers' config."""
    keys, tensors = read(path)
    if keys.get("general.type") == "adapter":
        raise ModelError(
            f"{path} is an adapter", "a model", f"load its base, then base.load_adapter({str(path)!r}, name)"
        )
    return names.config_from(keys, tensors)


def state(path: Path, config: Any) -> dict[str, Stored]:
    """Return the tensors under transformers' names. Raises ModelError for one that has no place there."""
    _, tensors = read(path)
    arch, by_key = names.ARCHITECTURES[config.model_type], {}
    for name, stored in tensors.items():
        key = names.state_name(name, arch)
        if key is not None:
            by_key[key] = Stored(stored.tensor, arch, config)
        elif name != names.ROPE_FACTORS:
            raise ModelError(
                f"{path} has a tensor {name}", f"only those of a {arch.name} model", "load the original model"
            )
    return by_key


def packed(path: Path, config: Any) -> tuple[dict[str, Stored], dict[str, Any]] | None:
    """Return `state` with undecoded matrices in the blocks, and the keywords of `GraftQuantConfig` for them.

    Returns None unless one scheme holds the types of all these matrices.
    """
    tensors = state(path, config)
    matrices = {
        key.removesuffix(".weight"): one
        for key, one in tensors.items()
        if key.startswith("model.layers.") and len(one.tensor.shape) > 1
    }
    schemes = {SCHEMES.get(str(one.form)) for one in matrices.values()}
    scheme = schemes.pop() if len(schemes) == 1 else None
    if scheme is None:
        return None
    for name, one in matrices.items():
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": Stored(one.tensor, one.arch, one.config, part) for part in PARTS}
    return tensors, {"scheme": scheme, "block": BLOCK, "modules": {name: {} for name in matrices}}


def lora(path: Path, config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a GGUF adapter as PEFT's config and tensors.

    config: of the base. Raises AdapterError if the two do not fit.
    """
    keys, stored = read(path)
    arch = names.architecture(config)
    if keys.get("general.type") != "adapter" or keys.get("adapter.type") != "lora":
        raise AdapterError(f"{path} is not a LoRA", "a GGUF file of a LoRA", "load a model with graft.load")
    if keys.get("general.architecture") != arch.name:
        raise AdapterError(
            f"{path} is for {keys.get('general.architecture')}",
            f"an adapter for {arch.name}",
            "load the base that it was trained on",
        )
    alpha = keys.get("adapter.lora.alpha")
    if not fits(alpha, Alpha):
        raise AdapterError(f"{path} has the alpha {shown(alpha)}", in_words(Alpha), "convert it again")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, one in stored.items():
        if len(one.get_shape()) != 2:
            raise AdapterError(
                f"{path}: {name} has the shape {one.get_shape()}", "matrices", "convert it again"
            )
        of, _, part = name.rpartition(".lora_")
        key = names.state_name(of, arch)
        values = one[...].float()
        table = of == "token_embd.weight"
        if key is None or part not in ("a", "b"):
            raise AdapterError(
                f"{path} has a tensor {name}", f"A and B of matrices of {arch.name}", "convert it again"
            )
        module = key.removesuffix(".weight")
        if part == "a":
            values = values.T if table else values
            ranks[module] = len(values)
        else:
            values = names.from_file(values, of, arch, config)
        suffix = f"lora_embedding_{part.upper()}" if table else f"lora_{part.upper()}.weight"
        tensors[f"base_model.model.{module}.{suffix}"] = values
    usual = max(ranks.values(), key=list(ranks.values()).count, default=1)
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": alpha,  # over the rank of each, as in PEFT
        "target_modules": sorted(ranks),
        "rank_pattern": {module: r for module, r in ranks.items() if r != usual},
    }, tensors


def tokenizer(path: Path) -> Any:
    """Return the file's tokenizer, with its chat template; None for a file without one."""
    keys, _ = read(path)
    tokens = keys.get("tokenizer.ggml.tokens")
    if not tokens:
        return None
    whole = keys.get("tokenizer.huggingface.json")
    if whole is None:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    ids = {name: keys.get(f"tokenizer.ggml.{key}_token_id") for name, key in TOKENS.items()}
    special = {name: tokens[i] for name, i in ids.items() if i is not None}
    name = "tokenizer.chat_template"
    own: str | dict[str, str] | None = keys.get(name)
    others = {key.removeprefix(f"{name}."): text for key, text in keys.items() if key.startswith(f"{name}.")}
    template = others | ({"default": own} if isinstance(own, str) else {}) if others else own
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(whole), chat_template=template, **special
    )
