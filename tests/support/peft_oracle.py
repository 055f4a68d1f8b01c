"""PEFT as the oracle of methods that it has: a tuned model with random adapter tensors, and its answers."""

import copy

import peft
import torch
from torch.testing import assert_close

from graft.base.base import Base
from models import inputs


def tuned(model, config, folder, scale=0.2, seed=0):
    """Return a PEFT model whose adapter tensors were moved at random, saved into `folder`."""
    model = peft.get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * scale)
    model.save_pretrained(folder)
    return model


def logits(model, family="llama"):
    """Return the logits of the family's batch from a transformers or PEFT model."""
    batch = inputs(family)
    return model(input_ids=batch.pop("ids"), **batch).logits


def assert_files_travel_both_ways(model, config, folder, family="llama", scale=0.2):
    """Assert that PEFT's file answers equally here, and ours there; return our base with PEFT's as "x"."""
    theirs = logits(tuned(model, config, folder / "theirs", scale), family)
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(folder / "theirs", "x")
    with base.using("x"):
        ours = base(**inputs(family)).logits
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - base(**inputs(family)).logits).abs().max() > 1e-2
    adapter.save(folder / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder / "ours").eval()
    assert_close(logits(again, family), ours, atol=1e-5, rtol=1e-5)
    return base


def assert_gradients_agree(model, config, folder, steps=3, scale=0.2):
    """Assert the same gradients at every step and the same tensors after them."""
    theirs = tuned(model, config, folder, scale).train()
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(folder, "x")
    base.train()
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizers = [torch.optim.SGD(ps, lr=0.05) for ps in (trained, adapter.parameters())]
    ids = inputs("llama")["ids"]
    for step in range(steps):
        adapter.after_step(step, steps)  # PEFT does before a forward what some methods do after a step
        losses = [theirs(input_ids=ids, labels=ids).loss]
        with base.using("x"):
            losses.append(base(ids, labels=ids).loss)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        norms = [torch.stack([p.grad.norm() for p in ps]) for ps in (trained, adapter.parameters())]
        assert_close(norms[1].sort()[0], norms[0].sort()[0], atol=1e-5, rtol=1e-4)
    state = peft.get_peft_model_state_dict(theirs)
    mine = adapter.file_state()
    assert mine.keys() == state.keys()
    for key, tensor in mine.items():
        assert_close(tensor, state[key], atol=1e-5, rtol=1e-4, msg=key)
