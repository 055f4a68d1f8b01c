"""Whether the engine's cache fits a model: asked of the model itself, once.

Two rows of different length are read and continued in slots, and by transformers' own loop each by itself.
If the logits differ by more than rounding, or anything fails, texts of this model are written on the plain
path.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.utils import logging

from graft.generate.cached import CachedStepper

LENGTHS, NEW = (21, 12), 2  # longer than the windows of the tests' models; some models cut rows into blocks
_known: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def fits(base: Any) -> bool:
    """Return whether the texts of a base can be written in slots. The base must be in evaluation mode."""
    if base.model not in _known:
        _known[base.model] = _same(base)
    return _known[base.model]


@torch.no_grad()
def _same(base: Any) -> bool:
    model = base.model
    level, chance = logging.get_verbosity(), torch.random.get_rng_state()
    logging.set_verbosity_error()
    try:
        stepper = CachedStepper(base)
        if base.family != "causal" or not stepper.table.usable:
            return False
        rows = [_ids(model, length) for length in LENGTHS]
        wanted = [_by_transformers(base, row) for row in rows]
        ours = _in_slots(stepper, rows, [tokens for tokens, _ in wanted])
        return all(_near(got, want) for got, (_, want) in zip(ours, wanted, strict=True))
    except Exception:  # every model fails in its own way
        return False
    finally:
        logging.set_verbosity(level)
        torch.random.set_rng_state(chance)


def _ids(model: Any, length: int) -> list[int]:
    size = min(model.get_input_embeddings().weight.shape[0], 4096)
    chance = torch.Generator().manual_seed(length)
    return torch.randint(size // 8, max(size - size // 8, 1), (length,), generator=chance).tolist()


def _by_transformers(base: Any, row: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the tokens that transformers writes after a row, and their logits (NEW, V)."""
    ids = torch.tensor([row], device=base.device)
    with base.routed([None]):
        out = base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            eos_token_id=None,
        )
    # transformers hands its logits out in fp32, however they were computed.
    logits = torch.cat(out.logits).to(base.model.get_input_embeddings().weight.dtype)
    return out.sequences[0, len(row) :].tolist(), logits


def _in_slots(stepper: CachedStepper, rows: list[list[int]], new: list[list[int]]) -> list[torch.Tensor]:
    """Return the logits (NEW, V) of each row's tokens `new`, the first row in two pieces."""
    slots = list(range(len(rows)))
    stepper.reserve(len(rows), max(map(len, rows)) + NEW - 1)
    for slot in slots:
        stepper.open(slot, None)
    half = len(rows[0]) // 2
    stepper.prefill([(0, rows[0][:half])])
    logits = [stepper.prefill([(0, rows[0][half:]), *zip(slots[1:], rows[1:], strict=True)])]
    device = logits[0].device
    for step in range(NEW - 1):
        logits.append(stepper.decode(slots, torch.tensor([tokens[step] for tokens in new], device=device)))
    return list(torch.stack(logits, 1))


def _near(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether logits differ by no more than the order of additions, or the rounding to 16 bits."""
    narrow, wide = wanted.dtype not in (torch.float32, torch.float64), wanted.float()
    away, size = (ours - wide).abs().mean(), wide.abs().mean()
    return bool(away <= (0.1 if narrow else 1e-4) * size + 1e-7)
