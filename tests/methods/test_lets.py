"""LeTS against an LSTM, gates and changed weights by hand; one forward of the trunk for several tasks."""

import pytest
import torch
from adapter_mutations import without_digests
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from graft.errors import AdapterError, UsageError
from graft.layers.delta import TRAIN, Delta
from graft.methods.lets import LeTS, Readout, share
from graft.methods.lora import LoRA
from graft.planning.sketch import Step, peak
from graft.stages.classify import Classify
from models import inputs, randomise, tiny_base

HALF = LeTS(num_labels=3, delta_layers=1, delta_density=0.3)


def of_kind(adapter, kind):
    return [insert for _, insert in adapter.inserts if type(insert) is kind]


def settle(adapter, seed=0):
    """Random weights under masks that are chosen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for delta in of_kind(adapter, Delta):
            size = delta.shape[0] * delta.shape[1]
            delta.index.copy_(torch.randperm(size, generator=generator)[: len(delta.D)])
            delta.D.copy_(torch.randn(len(delta.D), generator=generator) * 0.2)
            delta.phase.fill_(TRAIN)


def padded(family):
    live = torch.ones(3, 7, dtype=torch.long)
    live[0, 4:] = live[1, 3:] = 0
    return {**inputs(family), "attention_mask": live}


def trunk(base):
    """The blocks that are read: the encoder's, of two stacks."""
    return [site.module for site in base.sites if site.kind == "block"][: base.model.config.num_hidden_layers]


def states_of(base, keywords):
    """h_0 .. h_L, caught by plain hooks."""
    states, blocks = [], trunk(base)
    first = lambda value: value[0] if isinstance(value, tuple) else value
    handles = [block.register_forward_pre_hook(lambda m, args: states.append(args[0])) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda m, args, out: states.append(first(out))))
    base(**keywords)
    for handle in handles:
        handle.remove()
    return states


def lstm(steps, tensors, suffix):
    """The last state of one direction, cell by cell."""
    w_in, w_back = tensors[f"weight_ih_l0{suffix}"], tensors[f"weight_hh_l0{suffix}"]
    bias = tensors[f"bias_ih_l0{suffix}"] + tensors[f"bias_hh_l0{suffix}"]
    h = c = torch.zeros(len(steps[0]), 16)
    for x in steps:
        i, f, g, o = (x @ w_in.T + h @ w_back.T + bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def put(base, adapter):
    """Into the base's own weights what the deltas say, entry by entry."""
    for site, delta in adapter.inserts:
        if isinstance(delta, Delta):
            weight = site.weight()
            for position, value in zip(delta.index.tolist(), delta.D.tolist(), strict=True):
                weight[position // weight.shape[1], position % weight.shape[1]] += value


@pytest.mark.parametrize(
    ("family", "pool"), [("llama", "auto"), ("gpt2", "mean"), ("bert", "first"), ("t5", "auto")]
)
@torch.no_grad()
def test_the_equations_by_hand(family, pool):
    base, keywords = tiny_base(family), padded(family)
    adapter = base.attach("x", LeTS(num_labels=3, pool=pool, delta_layers=1, delta_density=0.02))
    randomise(adapter, scale=0.3)
    settle(adapter)
    (readout,) = of_kind(adapter, Readout)
    readout.gates.copy_(torch.tensor([0.7, -0.2, 1.5]))
    with base.using("x"):
        ours = base(**keywords)[0]
    put(base, adapter)
    read, live = [], keywords["attention_mask"].float()
    for gate, state in zip((1, 0, 1), states_of(base, keywords), strict=True):
        if pool == "first":
            pooled = state[:, 0]
        elif family == "llama":
            pooled = state[torch.arange(3), live.sum(1).long() - 1]
        else:
            pooled = (state * live[..., None]).sum(1) / live.sum(1, keepdim=True)
        spread = (pooled.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        read.append(gate * (pooled - pooled.mean(-1, keepdim=True)) / spread)
    tensors = dict(readout.lstm.named_parameters())
    u = torch.cat([lstm(read, tensors, ""), lstm(read[::-1], tensors, "_reverse")], -1)
    assert_close(ours, u @ readout.weight.T + readout.bias, atol=2e-5, rtol=1e-4)
    assert ours.std(0).min() > 1e-2  # rows differ


# Deltas


def test_the_number_of_weights_that_differ_is_exact():
    base = tiny_base("bert", num_hidden_layers=3)
    adapter = base.attach("x", LeTS(delta_layers=2, delta_density=0.1))
    deltas = [(site.name, len(insert.D)) for site, insert in adapter.inserts if isinstance(insert, Delta)]
    assert len(deltas) == 2 * 6 and {name.split(".")[3] for name, _ in deltas} == {"1", "2"}
    assert sorted(count for _, count in deltas) == [410] * 8 + [819] * 4  # 64 x 64 and 64 x 128
    settle(adapter)
    assert sum(int((d.matrix() != 0).sum()) for d in of_kind(adapter, Delta)) == 8 * 410 + 4 * 819


def train(base, adapter, method, steps, total, seed=0):
    """Some steps of a run with `total`, on random labels."""
    ids, labels = inputs("llama", rows=6)["ids"], torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    base.train()
    for step in steps:
        torch.manual_seed(seed + step)
        with base.using("x"):
            loss = F.cross_entropy(base(ids)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(adapter.parts[0], step, total)
        losses.append(loss.item())
    base.train(False)
    return losses


def test_the_weights_are_chosen_once_by_weight_times_gradient():
    base = tiny_base("llama")
    torch.manual_seed(3)
    adapter = base.attach("x", HALF)
    deltas = [(site, insert) for site, insert in adapter.inserts if isinstance(insert, Delta)]
    train(base, adapter, HALF, range(1, 3), 30)
    assert not any(delta.D.any() or delta.matrix().any() for _, delta in deltas)  # at rest
    weights = [site.module.weight.requires_grad_() for site, _ in deltas]
    # Step 3 of 30 is the choice: its own loss again, with the gradient of the base's weights
    before = {key: tensor.clone() for key, tensor in adapter.checkpoint_state().items()}
    train(base, adapter, HALF, [3], 30)
    scores = [(weight.grad * weight).abs().flatten() for weight in weights]
    for weight, score, (_, delta) in zip(weights, scores, deltas, strict=True):
        weight.requires_grad_(False).grad = None
        assert set(delta.index.tolist()) == set(score.topk(round(0.3 * score.numel())).indices.tolist())
    chosen = [delta.index.clone() for _, delta in deltas]
    losses = train(base, adapter, HALF, range(4, 31), 30)
    for index, (_, delta) in zip(chosen, deltas, strict=True):
        assert torch.equal(delta.index, index)
        off = torch.ones(delta.matrix().numel(), dtype=torch.bool)
        off[index.long()] = False
        assert not delta.matrix().flatten()[off].any() and delta.D.abs().min() > 0
    assert losses[-1] < 0.3 < losses[0]
    train(base, adapter, HALF, range(1, 5), 30)  # a second run goes on with the same weights
    assert all(torch.equal(delta.index, index) for index, (_, delta) in zip(chosen, deltas, strict=True))
    again = tiny_base("llama")  # a run that was killed before the choice makes the same one
    resumed = again.attach("x", HALF)
    resumed.restore_checkpoint_state(before)
    train(again, resumed, HALF, [3], 30)
    assert all(torch.equal(d.index, index) for d, index in zip(of_kind(resumed, Delta), chosen, strict=True))


def test_gradients_under_checkpointing_are_the_same_with_chosen_weights():
    gradients = []
    for on in (False, True):
        base = tiny_base("llama")
        torch.manual_seed(0)
        adapter = base.attach("x", HALF)
        settle(adapter)
        base.checkpointing(on)
        train(base, adapter, HALF, [9], 10)
        gradients.append([p.grad for p in adapter.parameters()])
    assert all(p.abs().max() > 0 for p in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


def test_rows_of_two_tasks_in_one_batch_keep_their_own_weights():
    base, ids = tiny_base("llama"), inputs("llama", rows=4)["ids"]
    for seed, name in enumerate("ab"):
        randomise(base.attach(name, HALF), seed)
        settle(base.adapters[name], seed)
    with torch.no_grad():
        a, b = base(ids, adapters=["a", "b", "a", "b"])
        assert_close(a, base(ids[::2], adapters=["a"] * 2)[0], atol=1e-6, rtol=1e-5)
        assert_close(b, base(ids[1::2], adapters=["b"] * 2)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("methods", [HALF, [LoRA(r=2), HALF]], ids=["alone", "beside LoRA"])
@torch.no_grad()
def test_chosen_weights_are_saved_and_loaded(methods, tmp_path):
    base, again, ids = tiny_base("llama"), tiny_base("llama"), inputs("llama")["ids"]
    adapter = base.attach("x", methods)
    randomise(adapter)
    settle(adapter)
    adapter.save(tmp_path)
    again.load_adapter(tmp_path, "x")
    with base.using("x"), again.using("x"):
        assert torch.equal(again(ids)[0], base(ids)[0])


def test_a_file_that_points_outside_a_weight_is_refused(tmp_path):
    base = tiny_base("llama")
    without_digests(base.attach("x", HALF).save(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("q_proj.index"))
    tensors[key][3] = 64 * 64
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(AdapterError, match=r"outside model.layers.1.self_attn.q_proj"):
        base.load_adapter(tmp_path, "y")


# The trunk


@pytest.mark.parametrize(("layers", "trained"), [(0, 0), (1, 7)])
def test_backward_stays_above_the_first_delta(layers, trained):
    base, keywords = tiny_base("llama", num_hidden_layers=3), inputs("llama")
    adapter = base.attach("x", LeTS(delta_layers=layers))
    settle(adapter)
    base.probe()  # before a call counts
    outputs = []
    for site in base.sites:
        if site.kind == "linear":
            site.module.register_forward_hook(lambda m, args, out: outputs.append(out.requires_grad))
    base.train()
    with base.using("x"):
        base(**keywords)[0].square().sum().backward()
    assert outputs == [False] * (21 - trained) + [True] * trained
    assert all(p.grad.abs().max() > 0 for p in adapter.parameters())


@torch.no_grad()
def test_one_forward_of_the_trunk_serves_all_tasks():
    base, keywords = tiny_base("bert"), padded("bert")
    tasks = {"a": LeTS(num_labels=2, delta_layers=0), "b": LeTS(num_labels=5, delta_layers=0, pool="first")}
    for seed, (name, method) in enumerate(tasks.items()):
        randomise(base.attach(name, method), seed)
    apart = {}
    for name in tasks:
        with base.using(name):
            apart[name] = base(**keywords)[0]
    passed = []
    for block in trunk(base):
        block.register_forward_hook(lambda m, args, out: passed.append(m))
    together = share(base, ["a", "b"], **keywords)
    assert len(passed) == len(trunk(base)) == 2
    assert {name: tuple(logits.shape) for name, logits in together.items()} == {"a": (3, 2), "b": (3, 5)}
    assert all(torch.equal(together[name], apart[name]) for name in tasks)


def test_a_trunk_that_differs_is_not_shared():
    base, keywords = tiny_base("bert"), inputs("bert")
    base.attach("plain", LeTS(delta_layers=0))
    base.attach("deltas", LeTS())
    base.attach("lora", [LoRA(r=2), LeTS(delta_layers=0)])
    for name in ("deltas", "lora", "nobody"):
        with pytest.raises(UsageError, match=f"{name} on a shared trunk"):
            share(base, ["plain", name], **keywords)
    with pytest.raises(UsageError, match="no adapter"):
        share(base, [], **keywords)


def test_a_planned_step_without_deltas_is_smaller():
    config = tiny_base("bert").model.config
    step = Step(2, 64, stage=Classify())
    without, having = (
        peak(config, [LeTS(delta_layers=layers)], step, uniform=False, task="encoder")[0] for layers in (0, 2)
    )
    assert without < 0.7 * having


# Gates


def test_a_gate_is_open_as_often_as_its_chance_says():
    base = tiny_base("llama")
    (readout,) = of_kind(base.attach("x", LeTS(delta_layers=0)), Readout)
    with torch.no_grad():
        readout.gates.copy_(torch.tensor([-1.0, 0.5, 2.0]))
        torch.manual_seed(0)
        readout.train()
        drawn = torch.stack([readout._open() for _ in range(4000)])
        assert_close(
            (drawn > 0.5).float().mean(0), readout.gates.sigmoid(), atol=0.03, rtol=0
        )  # 4 deviations
        readout.tau.fill_(0.01)
        assert ((readout._open() - 0.5).abs() > 0.45).all()  # cold: open or shut
        readout.eval()
        assert readout._open().tolist() == [0, 1, 1]


def test_the_temperature_falls_by_a_constant_factor():
    base, method = tiny_base("llama"), LeTS(delta_layers=0, tau_start=4.0, tau_end=0.25)
    adapter, seen = base.attach("x", method), []
    (readout,) = of_kind(adapter, Readout)
    for step in range(1, 5):
        method.after_step(adapter.parts[0], step, 4)
        seen.append(readout.tau.item())
    assert seen == [2.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    "settings",
    [{"delta_layers": -1}, {"delta_density": 0.0}, {"choose_at": 1.0}, {"tau_end": 2.0}, {"pool": "none"}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError):
        LeTS(**settings)
