"""All soft prompts and prefixes side by side: any lengths in one batch, with a cache, checkpointed."""

import pytest
import torch
from torch.testing import assert_close

from graft.methods.ipt import IPT
from graft.methods.lora import LoRA
from graft.methods.p_tuning import PTuning
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from models import inputs, randomise, tiny_base

SMALL = {"encoder_hidden_size": 8}
METHODS = {
    "ipt": IPT(num_virtual_tokens=3, intrinsic_dim=4, hidden_size=16),
    "long": PromptTuning(num_virtual_tokens=6),
    "lora": LoRA(r=4),
    "lstm": PTuning(num_virtual_tokens=5, encoder_reparameterization_type="LSTM", **SMALL),
    "mlp": PTuning(num_virtual_tokens=1, **SMALL),
    "prefix": PrefixTuning(num_virtual_tokens=4),
    "projected": PrefixTuning(num_virtual_tokens=2, prefix_projection=True, shift_positions=False, **SMALL),
    "short": [PromptTuning(num_virtual_tokens=2), PrefixTuning(num_virtual_tokens=1)],
}
ROWS = [None, *METHODS]  # sorted, as `routed` wants them
LENGTHS = [7, 4, 6, 7, 3, 5, 7, 2, 6]
HOW = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def together(family):
    """A base with all adapters, random in all they train."""
    base = tiny_base(family)
    for seed, (name, methods) in enumerate(METHODS.items()):
        randomise(base.attach(name, methods), seed)
    return base


def mask(left):
    place = torch.arange(7)
    lengths = torch.tensor(LENGTHS)[:, None]
    return (place >= 7 - lengths if left else place < lengths).long()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_mixed_batch_equals_separate_runs(family):
    base, batch = together(family), inputs(family, rows=len(ROWS))
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [ROWS[i] for i in order]
    live = mask(left=False)
    mixed = base(**batch, attention_mask=live, adapters=rows).logits
    bare = base(**batch, attention_mask=live).logits
    for row, name in enumerate(rows):
        own = {key: value[row : row + 1] for key, value in batch.items()}
        own["ids"] = own["ids"][:, : LENGTHS[row]]
        with base.using(name):
            alone = base(**own).logits[0]
        assert_close(mixed[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)
        assert name is None or (mixed[row] - bare[row])[: len(alone)].abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_mixed_batch_is_generated_with_a_cache_as_without_and_as_alone(family):
    base, ids = together(family), inputs(family, rows=len(ROWS))["ids"]
    live = mask(left=family != "t5")
    with torch.no_grad(), base.routed(ROWS):
        cached, plain = (
            base.model.generate(ids, attention_mask=live, use_cache=cache, **HOW)[:, -5:]
            for cache in (True, False)
        )
    assert torch.equal(cached, plain)
    for row, name in enumerate(ROWS):
        own = ids[row : row + 1][:, live[row].bool()]
        with torch.no_grad(), base.routed([name]):
            alone = base.model.generate(own, attention_mask=torch.ones_like(own), **HOW)[:, -5:]
        assert torch.equal(alone[0], cached[row])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_gradients_of_a_mixed_batch_are_those_of_separate_runs_also_checkpointed(family):
    batch = inputs(family, rows=len(ROWS))

    def gradients(*, checkpointed, mixed):
        base = together(family)
        base.checkpointing(checkpointed)
        base.train()
        if mixed:
            base(**batch, adapters=ROWS, use_cache=False).logits.square().mean((1, 2)).sum().backward()
        for row, name in enumerate(() if mixed else ROWS[1:], start=1):
            with base.using(name):
                own = base(**{k: v[row : row + 1] for k, v in batch.items()}, use_cache=False)
            own.logits.square().mean().backward()
        return [p.grad for adapter in base.adapters.values() for p in adapter.parameters()]

    alone = gradients(checkpointed=False, mixed=False)
    assert all(g is not None and g.abs().max() > 0 for g in alone)
    for checkpointed in (False, True):
        found = gradients(checkpointed=checkpointed, mixed=True)
        assert_close(found, alone, atol=1e-4, rtol=1e-3)  # additions come in another order
