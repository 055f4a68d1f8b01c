"""The peers' sides: transformers, PEFT, bitsandbytes and torch's own optimizer, in a plain loop.

shipped: as their documents show it: a bf16 model, NF4 with double quantisation and bf16 products,
`prepare_model_for_kbit_training` (which casts tables and norms to fp32), adapters in fp32, fused AdamW.
tuned: without the fp32 copies, and with one of VARIANTS, the fastest on this machine; the harness sets
the allocator by the environment. Both take SDPA attention and do not recompute activations, as Graft here.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import link
import torch
import weights
from peft import PeftModel, prepare_model_for_kbit_training
from same import RATE, ROWS, count, parameters, rate, sample
from shapes import SHAPES
from torch import nn
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils.quantization_config import BitsAndBytesConfig

CLIP = 1.0
# What the model is stored in, what products are computed in, and whether autocast is on.
VARIANTS = {
    "fp32": (torch.float32, torch.float32, False),
    "bf16": (torch.bfloat16, torch.bfloat16, False),
    "autocast": (torch.bfloat16, torch.bfloat16, True),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def train(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Train as Graft's side does: the same rows, adapter, rate, optimizer and clipping."""
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    shipped = spec["side"] == "shipped"
    asked = DTYPES.get(spec["dtype"], torch.bfloat16)
    variant = spec.get("variant", "bf16")
    stored, computed, autocast = (asked, asked, False) if shipped else VARIANTS[variant]
    quant = spec["quant"] != "none"
    model = loaded(weights.model(shape, folder), stored, computed if quant else None)
    if quant and shipped:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if spec["method"] == "full":
        model.requires_grad_(True)
    else:
        model = PeftModel.from_pretrained(model, weights.adapter(shape, folder), is_trainable=True)
    model.train()
    pipe.loaded()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(spec["optimizer"], trained, rate(spec))
    batches = weights.rows(shape, spec["length"], ROWS)
    unit = step_of(model, trained, optimizer, batches, autocast)
    facts = {
        "work": spec["length"],
        "trained": sum(p.numel() for p in trained),
        "variant": "as documented" if shipped else variant,
    }
    link.serve(pipe, unit, warm=spec["warm"], ready=facts)


def step_of(
    model: nn.Module, trained: list[nn.Parameter], optimizer: Any, batches: torch.Tensor, autocast: bool
) -> Callable[[], float]:
    """Return a function that takes the next step and returns its loss."""
    done = 0

    def unit() -> float:
        nonlocal done
        ids = batches[done % len(batches)][None]
        done += 1
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "use_cache": False}
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return unit


def loaded(folder: Path, dtype: torch.dtype, computed: torch.dtype | None = None) -> Any:
    """Return a model with SDPA attention.  computed: dtype of the products of NF4 weights; None: no NF4."""
    packing: dict[str, Any] = {}
    if computed is not None:
        packing["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=computed,
        )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        **packing,
    )


def optimizer_of(name: str, trained: list[nn.Parameter], lr: float) -> Any:
    """Return bitsandbytes' 8-bit AdamW or torch's fused one, without weight decay."""
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=lr, weight_decay=0.0)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True)


def load_once(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Load and quantise a model; the harness starts a process for each time."""
    folder = Path(spec["folder"])
    small, large = (weights.model(SHAPES[name], folder) for name in ("tiny", spec["shape"]))
    loaded(small, torch.bfloat16, torch.bfloat16)  # imports
    pipe.loaded()

    def unit() -> None:
        pipe.kept = loaded(large, torch.bfloat16, torch.bfloat16)

    link.serve(pipe, unit, warm=0, ready={"work": 1, "variant": "as documented"})


def optimize(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Update parameters whose gradients stay the same."""
    named = parameters(SHAPES[spec["shape"]], spec["layers"])
    updating = optimizer_of(spec["optimizer"], list(named.values()), RATE)
    pipe.loaded()
    before = sample(named)

    def unit() -> None:
        updating.step()

    link.serve(
        pipe, unit, warm=spec["warm"], ready={"work": count(named)},
        last=lambda: {"sample": (sample(named) - before).tolist()},
    )  # fmt: skip


def decode(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Write texts greedily in 16 bits by transformers' generate."""
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    model = loaded(weights.model(shape, folder), DTYPES[spec["dtype"]])
    pipe.loaded()
    unit = writing(model, weights.rows(shape, spec["prompt"], spec["rows"]), spec["new"])
    facts = {"work": spec["rows"] * spec["new"], "variant": "16 bits"}
    link.serve(pipe, unit, warm=spec["warm"], ready=facts)


def writing(model: Any, prompts: torch.Tensor, new: int) -> Callable[[], list[list[int]]]:
    """Return a function that continues the prompts by so many tokens each."""
    how = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)

    @torch.no_grad()
    def unit() -> list[list[int]]:
        out = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=how
        )
        return out[:, prompts.shape[1] :].tolist()

    return unit


def reference(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Tell the loss of the first row, or the greedy text, of the same weights computed in fp32.

    NF4 weights are those of bitsandbytes. The adapter is left out: a newborn one changes nothing.
    """
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    quant = spec["quant"] != "none"
    model = loaded(weights.model(shape, folder), torch.float32, torch.float32 if quant else None)
    model.train()  # in evaluation bitsandbytes packs weights again for another kernel; there is no dropout
    facts: dict[str, Any] = {}
    if spec["of"] == "train":
        ids = weights.rows(shape, spec["length"], ROWS)[:1]
        with torch.no_grad():
            facts["loss"] = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    else:
        (facts["tokens"],) = writing(model, weights.rows(shape, spec["prompt"], 1), spec["new"])()
    pipe.loaded()
    pipe.ready(**facts)
    for _ in pipe.orders():
        pass
    pipe.say(peak_mib=0)


KINDS = {
    "train": train,
    "load": load_once,
    "optimizer": optimize,
    "decode": decode,
    "reference": reference,
}
