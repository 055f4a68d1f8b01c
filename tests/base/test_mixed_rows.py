"""Several methods at once: each row uses a method of another family, and adapters are mixes of methods."""

import json

import pytest
import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.methods.adalora import AdaLoRA
from graft.methods.compacter import Compacter
from graft.methods.ia3 import IA3
from graft.methods.krona_b import KronAB
from graft.methods.lora import LoRA
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.quant.replace import quantise_model
from models import inputs, randomise, tiny_base, tiny_model

# MAM (He et al. 2021) is a prefix at attention and a scaled parallel bottleneck at the feed-forward network.
MIXES = {
    "mam": [PrefixTuning(num_virtual_tokens=3), Parallel(m=8)],
    "lora-prefix": [LoRA(r=3), PrefixTuning(num_virtual_tokens=2)],
    "prompt-pfeiffer-ia3": [PromptTuning(num_virtual_tokens=2), Pfeiffer(m=4), IA3()],
}
ALONE = {
    "lora": LoRA(r=3),
    "prefix": PrefixTuning(num_virtual_tokens=3),
    "bottleneck": Pfeiffer(m=8),
    "ia3": IA3(),
    "adalora": AdaLoRA(init_r=3),
    "compacter": Compacter(m=8),
    "krona_b": KronAB(),
    "prompt": PromptTuning(num_virtual_tokens=4),
}


def rows_apart(base, batch, rows):
    """The answers of every row by itself, under its adapter."""
    found = []
    for i, name in enumerate(rows):
        with base.using(name):
            found.append(base(**{key: value[i : i + 1] for key, value in batch.items()}).logits[0])
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "nf4"])
def test_a_batch_of_many_kinds_equals_separate_runs(family):
    quantised = family == "nf4"
    family = "llama" if quantised else family
    model = tiny_model(family)
    base = Base(quantise_model(model, "nf4") if quantised else model)
    methods = {**ALONE, **MIXES}
    for seed, (name, method) in enumerate(methods.items()):
        randomise(base.attach(name, method), seed)
    rows = [None, *methods, *reversed(methods)]
    batch = inputs(family, rows=len(rows))
    mixed, bare = base(**batch, adapters=rows).logits, base(**batch).logits
    for i, (name, alone) in enumerate(zip(rows, rows_apart(base, batch, rows), strict=True)):
        assert_close(mixed[i], alone, atol=1e-4, rtol=1e-4)  # only the order of additions may differ
        assert name is None or (mixed[i] - bare[i]).abs().max() > 1e-2, name


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_mix_is_saved_and_loaded_whole(tmp_path, family, mix):
    base, batch = tiny_base(family), inputs(family)
    adapter = base.attach("x", MIXES[mix])
    assert adapter.count() == sum(tiny_base(family).attach("part", method).count() for method in MIXES[mix])
    randomise(adapter)
    adapter.save(tmp_path)
    again = tiny_base(family)
    loaded = again.load_adapter(tmp_path, "x")
    assert [m.name() for m in loaded.methods] == [m.name() for m in MIXES[mix]]
    with base.using("x"), again.using("x"):
        assert torch.equal(again(**batch).logits, base(**batch).logits)


@pytest.mark.parametrize("mix", MIXES)
def test_every_part_of_a_mix_learns(mix):
    base, ids = tiny_base(), inputs("llama")["ids"]
    adapter = base.attach("x", MIXES[mix])
    randomise(adapter)
    base.train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in adapter.parameters()]
    losses = []
    for _ in range(8):
        with base.using("x"):
            loss = base(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, old) for p, old in zip(adapter.parameters(), before, strict=True))


def test_each_part_of_a_mix_learns_at_its_own_rate(tmp_path):
    """In Adam's first step, beside its tiny eps, a number moves by the learning rate."""
    base = tiny_base("llama")
    adapter = base.attach("mix", [LoRA(r=3), PrefixTuning(num_virtual_tokens=2, lr=3e-2)])
    randomise(adapter)
    before = [{name: p.detach().clone() for name, p in part.named_parameters()} for part in adapter.parts]
    optimizer = torch.optim.AdamW(adapter.param_groups(1e-3), eps=1e-30, weight_decay=0.0)
    base.train(True)
    batch = inputs("llama", rows=4)
    with base.using("mix"):
        base(**batch, labels=batch["ids"]).loss.backward()
    optimizer.step()
    for part, old, rate in zip(adapter.parts, before, (1e-3, 3e-2), strict=True):
        for name, p in part.named_parameters():
            moved = (p - old[name]).abs()[p.grad != 0]
            assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-6)
    adapter.save(tmp_path)
    assert "lr" not in json.loads((tmp_path / "adapter_config.json").read_text())
    assert all(method.lr is None for method in base.load_adapter(tmp_path, "again").methods)
