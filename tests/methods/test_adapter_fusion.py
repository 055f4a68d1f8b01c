"""AdapterFusion against its equations, written into the blocks by hand; counts, files and refusals."""

import shutil

import pytest
import torch
from block_oracle import rewired
from torch.nn import functional as F
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.layers.bottleneck import Bottleneck
from graft.methods.adapter_fusion import AdapterFusion
from graft.methods.houlsby import Houlsby
from graft.methods.lora import LoRA
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.task_head import TaskHead
from graft.planning.sketch import sketch, unreal
from models import inputs, randomise, tiny_base, tiny_model


def folders(family, tmp_path, *methods):
    """Trained adapters, saved."""
    for seed, method in enumerate(methods):
        adapter = tiny_base(family).attach("task", method)
        randomise(adapter, seed)
        adapter.save(tmp_path / f"task{seed}")
    return tuple(str(tmp_path / f"task{seed}") for seed in range(len(methods)))


def written(insert, value, temperature):
    """o(u) of one place, from loops over the adapters."""

    def attend(u):
        z = []
        for member in insert.members:
            inner = F.relu(u @ member.down.weight.T + member.down.bias)
            z.append(inner @ member.up.weight.T + member.up.bias)
        query = u @ insert.query.weight.T + insert.query.bias
        scores = torch.stack([(query * (k @ insert.key.weight.T + insert.key.bias)).sum(-1) for k in z])
        weights = (scores / temperature).softmax(0)
        values = [v @ insert.V.T for v in z] if value else z
        return sum(w[..., None] * v for w, v in zip(weights, values, strict=True))

    return attend


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("settings", [{}, {"value": False, "temperature": 3.0}])
def test_the_blocks_answer_as_written_by_hand(family, settings, tmp_path):
    model = tiny_model(family)
    base = Base(model)
    tasks = (Pfeiffer(), Pfeiffer(m=7), Pfeiffer(reduction_factor=8))
    adapter = base.attach("x", AdapterFusion(adapters=folders(family, tmp_path, *tasks), **settings))
    randomise(adapter)
    keywords = inputs(family)
    with base.using("x"), torch.no_grad():
        ours = base(**keywords).logits
    before = base(**keywords).logits
    o = [
        written(insert, settings.get("value", True), settings.get("temperature", 1.0))
        for _, insert in adapter.inserts
    ]
    if family == "bert":
        ends = {(n, "mlp"): lambda h, r, norm, o=o[n]: norm(o(norm(h + r)) + h + r) for n in range(2)}
    else:
        ends = {(n, "mlp"): lambda h, r, norm, o=o[n]: h + o(h) + r for n in range(2)}
    ids = keywords.pop("ids")
    assert_close(ours, rewired(model, ends)(input_ids=ids, **keywords).logits, atol=3e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


def test_fused_adapters_are_those_of_their_folders_and_stay_as_they_are(tmp_path):
    base = tiny_base()
    adapter = base.attach("x", AdapterFusion(adapters=folders("llama", tmp_path, Pfeiffer(), Pfeiffer())))
    loaded = [tiny_base().load_adapter(tmp_path / f"task{n}", "y") for n in range(2)]

    def same():
        return all(
            torch.equal(mine, theirs)
            for n in range(2)
            for (_, insert), (_, single) in zip(adapter.inserts, loaded[n].inserts, strict=True)
            for mine, theirs in zip(insert.members[n].parameters(), single.parameters(), strict=True)
        )

    assert same()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    base.train()
    with base.using("x"):
        ids = inputs("llama")["ids"]
        base(ids, labels=ids).loss.backward()
    before = [p.clone() for p in adapter.parameters()]
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(adapter.parameters(), before, strict=True)]
    assert (
        same() and sum(moved) >= len(moved) - 2
    )  # the bias of K shifts all scores alike: its gradient is zero


def test_adapters_of_classifiers_are_fused_without_their_heads(tmp_path):
    classifier = tiny_base("bert", bare=True)
    trained = classifier.attach("task", [Pfeiffer(m=3), TaskHead(num_labels=5)])
    randomise(trained)
    trained.save(tmp_path / "task")
    base = tiny_base("bert", bare=True)
    adapter = base.attach("x", [AdapterFusion(adapters=(str(tmp_path / "task"),)), TaskHead(num_labels=2)])
    pairs = zip(adapter.parts[0].inserts, trained.parts[0].inserts, strict=True)
    for (_, fusion), (_, single) in pairs:
        assert torch.equal(fusion.members[0].up.weight, single.up.weight)
    assert adapter.head.num_labels == 2


def test_the_file_needs_no_folder_any_more(tmp_path):
    base = tiny_base()
    adapter = base.attach("x", AdapterFusion(adapters=folders("llama", tmp_path, Pfeiffer(), Pfeiffer(m=3))))
    randomise(adapter)
    adapter.save(tmp_path / "fusion")
    for n in range(2):
        shutil.rmtree(tmp_path / f"task{n}")
    again = tiny_base()
    again.load_adapter(tmp_path / "fusion", "y")
    with base.using("x"), again.using("y"):
        assert torch.equal(base(**inputs("llama")).logits, again(**inputs("llama")).logits)


def test_a_plan_reads_the_folders_it_fuses(tmp_path):
    adapters = folders("llama", tmp_path, Pfeiffer(), Pfeiffer(m=3))
    config = tiny_model("llama").config
    with unreal():
        planned = sketch(config).attach("x", AdapterFusion(adapters=adapters)).count()
    assert planned == tiny_base().attach("x", AdapterFusion(adapters=adapters)).count()


def test_v_starts_at_the_identity_and_is_pulled_there():
    adapter = tiny_base().attach("x", AdapterFusion(regularization=0.5))
    eye = torch.eye(64)
    for _, insert in adapter.inserts:
        assert_close(insert.V.detach(), eye + 1e-6 * (1 - eye))
    randomise(adapter)
    wanted = 0.5 * sum(((insert.V - eye) ** 2).sum() for _, insert in adapter.inserts)
    assert_close(adapter.extra_loss([torch.tensor(1.0)]), wanted)
    undecayed = [
        p for group in adapter.param_groups(1e-3) if group.get("weight_decay") == 0.0 for p in group["params"]
    ]
    assert all(any(p is insert.V for p in undecayed) for _, insert in adapter.inserts)
    assert sum(len(group["params"]) for group in adapter.param_groups(1e-3)) == len(adapter.parameters())
    assert tiny_base().attach("x", AdapterFusion(value=False)).extra_loss([torch.tensor(1.0)]) is None


def test_fused_adapters_drop_nothing_while_the_fusion_is_trained():
    base = tiny_base()
    adapter = base.attach(
        "x", AdapterFusion(adapters=({"name": "pfeiffer", "dropout": 0.9, "init_weights": "bert"},))
    )
    randomise(adapter)
    with base.using("x"):
        still = base(**inputs("llama")).logits
        base.train()
        assert torch.equal(base(**inputs("llama")).logits, still)


def test_untrained_members_are_told():
    assert "2 of the 2" in tiny_base().attach("x", AdapterFusion()).notices()[0]


def test_what_cannot_be_fused_is_named(tmp_path):
    lora, normed = folders("llama", tmp_path, LoRA(), Houlsby())
    for folder in (lora, normed):
        with pytest.raises(AdapterError, match="train_norms=false"):
            tiny_base().attach("x", AdapterFusion(adapters=(folder,)))
    with pytest.raises(UsageError, match="folders"):
        AdapterFusion(adapters=())
    for entry, said in (
        ({"name": "pfeifer"}, "pfeiffer"),
        ({"name": "pfeiffer", "mm": 8}, "nearest: m"),
        (3, "name"),
    ):
        with pytest.raises(UsageError, match=said):
            tiny_base().attach("x", AdapterFusion(adapters=(entry,)))
    with pytest.raises(UsageError, match="parallel to and after"):
        tiny_base().attach("x", AdapterFusion(adapters=({"name": "pfeiffer"}, {"name": "parallel"})))
    houlsby, beside = folders("llama", tmp_path / "more", Houlsby(train_norms=False), Parallel())
    assert len(tiny_base().attach("x", AdapterFusion(adapters=(houlsby, houlsby))).inserts) == 4
    fused = tiny_base().attach("x", AdapterFusion(adapters=(beside, beside))).inserts[0][1]
    assert fused.parallel and all(isinstance(member, Bottleneck) for member in fused.members)
