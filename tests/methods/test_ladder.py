"""Ladder-side tuning against the base itself, a narrow Llama by hand, and the bytes that LoRA keeps."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from graft.errors import UsageError
from graft.methods.ladder import Foot, Ladder, Rung, Side
from graft.methods.lora import LoRA
from graft.planning.sketch import Step, peak
from models import CONFIGS, inputs, randomise, tiny_base

OPEN = 100.0  # σ(100 / T) is 1: a side block reads the side state alone


def of_kind(adapter, kind):
    return [insert for _, insert in adapter.inserts if type(insert) is kind]


def open_gates(adapter):
    with torch.no_grad():
        for side in of_kind(adapter, Side):
            side.gates.fill_(OPEN)


def blocks_of(base):
    return [site.module for site in base.sites if site.kind == "block"]


def padded(family):
    """A batch with two short rows, filled up where the family expects it."""
    live = torch.ones(3, 7, dtype=torch.long)
    live[0, :2] = live[1, :3] = 0
    return {**inputs(family), "attention_mask": live.flip(1) if family in ("bert", "roberta", "t5") else live}


# The base as oracle: a side network as wide as the base, pruned of nothing


@pytest.mark.parametrize("family", CONFIGS)
def test_undivided_and_with_open_gates_it_is_a_second_base(family):
    base, keywords = tiny_base(family), padded(family)
    with torch.no_grad():
        wanted = base(**keywords).logits
        adapter = base.attach("x", Ladder(reduction_factor=1))
        with base.using("x"):
            assert (base(**keywords).logits - wanted).abs().max() > 1e-2  # half-open gates
            open_gates(adapter)
            ours = base(**keywords).logits
    live = slice(None) if family == "t5" else keywords["attention_mask"].bool()
    assert_close(ours[live], wanted[live], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_closed_gates_pass_on_the_last_state_of_the_base_alone(family):
    base, keywords = tiny_base(family), inputs(family)
    adapter = base.attach("x", Ladder(reduction_factor=1))
    stacks = of_kind(adapter, Side)
    with torch.no_grad(), base.using("x"):
        for side in stacks:
            side.gates.fill_(-OPEN)
        before = base(**keywords).logits
        for side in stacks:
            for parameter in side.net.blocks[0].parameters():
                parameter.mul_(3)
        # T5 keeps the distances of all its blocks in the first one
        touched = (base(**keywords).logits - before).abs().max()
        assert touched == 0 if family == "llama" else touched > 0
        for side in stacks:
            for parameter in side.net.blocks[1].parameters():
                parameter.mul_(3)
        assert (base(**keywords).logits - before).abs().max() > 1e-2


# A narrow Llama by hand


def norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x):
    """Rotary positions: x (B, H, T, 8), four speeds 10000^(-i/4)."""
    angles = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    cos, sin, first, second = angles.cos(), angles.sin(), x[..., :4], x[..., 4:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def llama_block(x, p):
    """Four heads of 8 on two heads of keys and values; p: the block's tensors by name."""
    rows, tokens, _ = x.shape
    normal = norm(x, p["input_layernorm.weight"])
    heads = lambda name, count: (
        (normal @ p[f"self_attn.{name}_proj.weight"].T).view(rows, tokens, count, 8).transpose(1, 2)
    )
    q, k = turned(heads("q", 4)), turned(heads("k", 2)).repeat_interleave(2, 1)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
    mixed = scores.softmax(-1) @ heads("v", 2).repeat_interleave(2, 1)
    x = x + mixed.transpose(1, 2).reshape(rows, tokens, 32) @ p["self_attn.o_proj.weight"].T
    normal = norm(x, p["post_attention_layernorm.weight"])
    up = F.silu(normal @ p["mlp.gate_proj.weight"].T) * (normal @ p["mlp.up_proj.weight"].T)
    return x + up @ p["mlp.down_proj.weight"].T


def alone(side):
    """Its stack, outside the Route."""
    twin = type(side.net.net)(side.net.net.config)
    twin.load_state_dict(side.net.net.state_dict(), strict=False)  # a table of one token besides
    return twin.eval()


def linear(x, projection):
    return x @ projection.weight.T + projection.bias


@pytest.mark.parametrize("layers", [(), (1, 2)])
@pytest.mark.parametrize("init", ["prune", "random"])
@torch.no_grad()
def test_the_equation_on_llama_by_hand(layers, init):
    base, keywords = tiny_base("llama", num_hidden_layers=4), inputs("llama")
    states, handles = [], []
    for block in blocks_of(base):
        handles.append(block.register_forward_pre_hook(lambda m, args: states.append(args[0])))
    handles.append(blocks_of(base)[-1].register_forward_hook(lambda m, args, out: states.append(out)))
    before = base(**keywords).logits
    for handle in handles:
        handle.remove()
    adapter = base.attach("x", Ladder(reduction_factor=2, layers=layers, init=init))
    randomise(adapter, scale=0.1)
    (foot,), (side,), rungs = (of_kind(adapter, kind) for kind in (Foot, Side, Rung))
    tensors = dict(side.net.net.named_parameters())
    s = linear(states[0], foot.down)
    for index, (layer, rung) in enumerate(zip(layers or range(4), rungs, strict=True)):
        gate = torch.sigmoid(side.gates[index] / 0.1)
        own = {
            n.removeprefix(f"layers.{index}."): p
            for n, p in tensors.items()
            if n.startswith(f"layers.{index}.")
        }
        s = llama_block(gate * s + (1 - gate) * linear(states[layer + 1], rung.down), own)
    wanted = linear(norm(s, tensors["norm.weight"]), side.up) @ base.model.lm_head.weight.T
    with base.using("x"):
        ours = base(**keywords).logits
    assert_close(ours, wanted, atol=2e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


@torch.no_grad()
def test_the_side_decoder_attends_to_the_side_encoder():
    base, keywords = tiny_base("t5"), padded("t5")
    embeddings = base.model.shared
    adapter = base.attach("x", Ladder(reduction_factor=2))
    randomise(adapter, scale=0.1)
    open_gates(adapter)
    (encoder, decoder), (low, high) = of_kind(adapter, Side), of_kind(adapter, Foot)
    states = alone(encoder)(
        inputs_embeds=linear(embeddings(keywords["ids"]), low.down), attention_mask=keywords["attention_mask"]
    ).last_hidden_state
    last = alone(decoder)(
        inputs_embeds=linear(embeddings(keywords["decoder_input_ids"]), high.down),
        encoder_hidden_states=states, encoder_attention_mask=keywords["attention_mask"],
    ).last_hidden_state  # fmt: skip
    wanted = linear(last, decoder.up) * 64**-0.5 @ embeddings.weight.T
    with base.using("x"):
        assert_close(base(**keywords).logits, wanted, atol=2e-5, rtol=1e-4)


# Pruning


@torch.no_grad()
def test_pruning_keeps_the_dimensions_with_the_largest_weights():
    base = tiny_base("llama")
    wide = torch.arange(3, 64, 4)  # 16 dimensions of the residual stream that matter
    units = torch.arange(1, 128, 4)  # 32 units of every feed-forward part
    head = torch.tensor([1, 5, 9, 13])  # of 16: one of each quarter of a half, and the same of the other half
    rows = lambda count: (16 * torch.arange(count)[:, None] + head).flatten()
    for block in blocks_of(base):
        attention, mlp = block.self_attn, block.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight[:, wide] *= 3
        for inner, owner in ((units, mlp.up_proj), (rows(4), attention.q_proj)):
            owner.weight[inner] *= 3
    adapter = base.attach("x", Ladder(reduction_factor=4))
    (side,), (foot,) = of_kind(adapter, Side), of_kind(adapter, Foot)
    for small, block in zip(side.net.blocks, blocks_of(base), strict=True):
        for name, count in (("q", 4), ("k", 2), ("v", 2)):
            ours, own = (getattr(b.self_attn, f"{name}_proj").weight for b in (small, block))
            assert torch.equal(ours, own[rows(count)][:, wide])
        assert torch.equal(small.self_attn.o_proj.weight, block.self_attn.o_proj.weight[wide][:, rows(4)])
        assert torch.equal(small.mlp.gate_proj.weight, block.mlp.gate_proj.weight[units][:, wide])
        assert torch.equal(small.mlp.down_proj.weight, block.mlp.down_proj.weight[wide][:, units])
        assert torch.equal(small.input_layernorm.weight, block.input_layernorm.weight[wide])
    assert torch.equal(side.net.net.norm.weight, base.model.model.norm.weight[wide])
    assert torch.equal(foot.down.weight, torch.eye(64)[wide]) and torch.equal(
        side.up.weight, torch.eye(64)[wide].T
    )
    assert not side.gates.any() and not side.up.bias.any()


# Nothing of the trunk is kept


class Kept:
    """The tensors that autograd keeps inside the block, each storage once, but for parameters."""

    def __init__(self, base, adapter):
        self._known = {
            p.untyped_storage().data_ptr() for p in [*base.model.parameters(), *adapter.parameters()]
        }
        self.tensors = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self.tensors.setdefault(storage.data_ptr(), tensor)  # alive, so the address stays its own
        return tensor

    @property
    def size(self):
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())

    def wide(self, width):
        return [tensor for tensor in self.tensors.values() if tensor.ndim and tensor.shape[-1] >= width]

    def __enter__(self):
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)


def kept(method, **keywords):
    """What one training forward keeps below the head on a Llama of eight blocks."""
    base = tiny_base("llama", num_hidden_layers=8)
    adapter = base.attach("x", method)
    base.train()
    with base.using("x"), Kept(base, adapter) as found:
        base.hidden(**inputs("llama", length=32)).sum()
    return found


def test_of_the_trunk_only_the_states_that_the_rungs_read_are_kept():
    ladder, lora = kept(Ladder()), kept(LoRA())
    assert [t.numel() for t in ladder.wide(64)] == [3 * 32 * 64] * 9  # h_0 .. h_8
    assert len(lora.wide(64)) >= 8 * 8
    assert ladder.size < 0.27 * lora.size  # 0.261


def test_backward_runs_in_no_block_of_the_base():
    base, keywords = tiny_base("llama"), inputs("llama")
    adapter = base.attach("x", Ladder(reduction_factor=2))
    outputs = []
    for site in base.sites:
        if site.kind == "linear":
            site.module.register_forward_hook(lambda m, args, out: outputs.append(out.requires_grad))
    base.train()
    with base.using("x"):
        base(**keywords).logits.square().sum().backward()
    assert len(outputs) == 14 and not any(outputs)
    assert all(p.grad.abs().max() > 0 for p in adapter.parameters())


def test_a_planned_step_is_smaller_than_with_lora():
    config = tiny_base("llama", num_hidden_layers=3).model.config
    ladder, lora = (peak(config, [method], Step(2, 64), uniform=False)[0] for method in (Ladder(), LoRA()))
    assert ladder < 0.7 * lora


# The rest


def test_dropout_falls_on_the_embeddings_in_training_alone():
    base, keywords = tiny_base("llama"), inputs("llama")
    base.attach("x", Ladder(reduction_factor=2, dropout=0.5))
    with torch.no_grad(), base.using("x"):
        still = [base(**keywords).logits for _ in range(2)]
        base.train()
        moving = [base(**keywords).logits for _ in range(2)]
    assert torch.equal(*still) and (moving[0] - moving[1]).abs().max() > 1e-2


GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_whole_forwards(family, cache):
    base, ids = tiny_base(family), inputs(family)["ids"]
    randomise(base.attach("x", Ladder(reduction_factor=2)))
    wanted = ids
    for _ in range(5):
        with base.using("x"):
            wanted = torch.cat([wanted, base(wanted).logits[:, -1:].argmax(-1)], 1)
    with base.routed(["x"] * 3):
        assert torch.equal(base.model.generate(ids, use_cache=cache, **GREEDY), wanted)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["llama", "t5"])
@torch.no_grad()
def test_beams_follow_their_own_row(family, cache):
    """The side network's cache is reordered with the base's; a side decoder reads its row's encoder."""
    base, ids = tiny_base(family), inputs(family)["ids"]
    randomise(base.attach("x", Ladder(reduction_factor=2)))
    with base.routed(["x"] * 3):
        together = base.model.generate(ids, use_cache=cache, num_beams=3, **GREEDY)
    for row in range(3):
        with base.routed(["x"]):
            alone = base.model.generate(ids[row : row + 1], use_cache=False, num_beams=3, **GREEDY)
            assert torch.equal(alone[0], together[row])


@torch.no_grad()
def test_rows_of_other_adapters_leave_the_caches_whole():
    base, ids = tiny_base("llama"), inputs("llama")["ids"]
    randomise(base.attach("x", Ladder(reduction_factor=2)))
    randomise(base.attach("y", LoRA(r=2)), 1)
    with base.routed([None, "x", "y"]):
        mixed = base.model.generate(ids, **GREEDY)
    for row, name in enumerate([None, "x", "y"]):
        with base.routed([name]):
            assert torch.equal(
                base.model.generate(ids[row : row + 1], use_cache=False, **GREEDY)[0], mixed[row]
            )


@torch.no_grad()
def test_a_cache_that_came_back_goes_on_with_rows_of_several_adapters():
    base, ids, rows = tiny_base("llama"), inputs("llama", rows=4)["ids"], ["x", "x", "x", "y"]
    for seed, name in enumerate("xy"):
        randomise(base.attach(name, Ladder(reduction_factor=2)), seed)
    begun = base(ids[:, :-1], adapters=rows, use_cache=True)
    last = base(ids[:, -1:], adapters=rows, past_key_values=begun.past_key_values).logits
    assert_close(last, base(ids, adapters=rows).logits[:, -1:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_beams_over_rows_of_several_adapters_are_refused_where_a_cache_is_kept():
    base, ids = tiny_base("llama"), inputs("llama")["ids"]
    randomise(base.attach("x", Ladder(reduction_factor=2)))
    with base.routed([None, "x", "x"]), pytest.raises(UsageError, match="beams"):
        base.model.generate(ids, num_beams=2, **GREEDY)


def test_heads_that_do_not_divide_are_told():
    base = tiny_base("llama")  # heads of 16 divide by 8, and by 16 no more: two positions stay
    assert base.attach("x", Ladder(reduction_factor=8)).notices() == []
    (said,) = base.attach("y", Ladder(reduction_factor=16)).notices()
    assert "8 wide, not 64/16" in said


@pytest.mark.parametrize(
    "settings", [{"reduction_factor": 0}, {"gate_T": 0.0}, {"init": "fisher"}, {"dropout": 1.0}], ids=str
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError):
        Ladder(**settings)


@pytest.mark.parametrize("layers", [(2,), (1, 0), (0, 0), (-1,)])
def test_blocks_that_are_not_there_are_refused(layers):
    with pytest.raises(UsageError, match="rising numbers from 0 to 1"):
        tiny_base("llama").attach("x", Ladder(layers=layers))
