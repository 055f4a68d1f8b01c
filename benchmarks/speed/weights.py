"""Random models by shape, written to a folder once: weights, a tokenizer of numbered words, LoRA adapters,
and the same weights for llama.cpp.

Tensors are drawn and written one at a time, so a model may be larger than memory. The same shape gives the
same bytes.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shapes import Shape

STD = 0.02
RANK, ALPHA = 16, 32
DRAWN = 1 << 24  # values that are drawn at a time


def model(shape: Shape, folder: Path) -> Path:
    """Write the model's folder if it is not there, and return it."""
    target = folder / shape.name
    if not (target / "model.safetensors").exists():
        target.mkdir(parents=True, exist_ok=True)
        _write_json(target / "config.json", shape.config())
        _tokenizer(shape.vocabulary, target)
        partial = target / "model.partial"
        _stream(shape, partial)
        partial.replace(target / "model.safetensors")
    return target


def adapter(shape: Shape, folder: Path, number: int = 0, *, trained: bool = False) -> Path:
    """Write a LoRA on all linears in PEFT's layout if it is not there, and return its folder.

    trained: B is random, as after training; else zero, as at birth.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    target = folder / f"{shape.name}-lora-{'trained' if trained else 'newborn'}-{number}"
    if not (target / "adapter_config.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(1000 + number)
        tensors = {}
        for layer in range(shape.layers):
            for name, (out, width) in shape.block().items():
                bound = 1 / math.sqrt(width)
                A = torch.empty(RANK, width).uniform_(-bound, bound, generator=generator)
                B = torch.randn(out, RANK, generator=generator) * (1e-3 if trained else 0.0)
                key = f"base_model.model.model.layers.{layer}.{name}"
                tensors |= {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
        save_file(tensors, target / "adapter_model.safetensors")
        names = [name.rpartition(".")[2] for name in shape.block()]
        LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM", inference_mode=True
        ).save_pretrained(target)
    return target


def gguf(shape: Shape, folder: Path) -> Path:
    """Write the model as Q4_0 for llama.cpp, all matrices and both tables, and return the file."""
    import gguf as package
    import numpy as np
    from safetensors import safe_open

    target = folder / f"{shape.name}-q4_0.gguf"
    if target.exists():
        return target
    kinds = package.GGMLQuantizationType
    partial = target.with_suffix(".partial")
    writer = package.GGUFWriter(partial, "llama")
    _describe(writer, shape, package)
    with safe_open(model(shape, folder) / "model.safetensors", "pt") as file:
        for name, (_, *rest) in tensors(shape):
            values = file.get_tensor(name).float()
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = shape.heads if "q_proj" in name else shape.kv_heads
                values = _interleaved(values, heads)
            kind = kinds.Q4_0 if rest else kinds.F32
            data = package.quants.quantize(np.ascontiguousarray(values.numpy()), kind)
            writer.add_tensor(_gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return target


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a model's tensors, in the order of the file."""
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.d)
    for layer in range(shape.layers):
        for name, size in shape.block().items():
            yield f"model.layers.{layer}.{name}.weight", size
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (shape.d,)
    yield "model.norm.weight", (shape.d,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.d)


def rows(shape: Shape, length: int, count: int) -> torch.Tensor:
    """Return token ids (count, length), small ones more often, so that a loss can fall."""
    drawn = torch.rand(count, length, generator=torch.Generator().manual_seed(7)) ** 3
    return (drawn * shape.vocabulary).long()


def words(ids: list[int]) -> str:
    """Return the text of token ids."""
    return " ".join(f"t{number}" for number in ids)


def numbers(text: str) -> list[int]:
    """Return the token ids of a text.

    >>> numbers(words([3, 41]))
    [3, 41]
    """
    return [int(word[1:]) for word in text.split()]


def _stream(shape: Shape, path: Path) -> None:
    """Write model.safetensors: a header of names and offsets, then the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in tensors(shape):
        end = at + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (_, size) in enumerate(tensors(shape)):
            for part in _values(size, number):
                file.write(part.view(torch.uint8).numpy().data)


def _values(size: tuple[int, ...], number: int) -> Iterator[torch.Tensor]:
    """Yield a tensor's values in bf16 in pieces; those of a norm are one."""
    total = math.prod(size)
    if len(size) == 1:
        yield torch.ones(total, dtype=torch.bfloat16)
        return
    generator = torch.Generator().manual_seed(number)
    for at in range(0, total, DRAWN):
        drawn = torch.randn(min(DRAWN, total - at), generator=generator)
        yield drawn.mul_(STD).bfloat16()


def _tokenizer(vocabulary: int, folder: Path) -> None:
    """Write a tokenizer whose token number n is the word "tn"; none of them ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"t{n}": n for n in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}
    _write_json(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False})


def _describe(writer: Any, shape: Shape, package: Any) -> None:
    """Write the keys of a GGUF: sizes, and a vocabulary of bytes and numbered words."""
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.d)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.f)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.d // shape.heads)
    writer.add_file_type(package.LlamaFileType.MOSTLY_Q4_0)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [*first, *(f"▁t{n}" for n in range(len(first), shape.vocabulary))]
    types = package.TokenType
    kinds = [types.UNKNOWN, types.CONTROL, types.CONTROL, *[types.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(kinds + [types.NORMAL] * (len(texts) - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor.

    >>> _gguf_name("model.layers.3.self_attn.q_proj.weight"), _gguf_name("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    plain = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers": "blk", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }  # fmt: skip
    for here, there in plain.items():
        name = name.replace(here, there)
    return name


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows in the order of llama.cpp, which rotates neighbours where transformers rotates halves."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return split.transpose(1, 2).reshape(weight.shape)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
