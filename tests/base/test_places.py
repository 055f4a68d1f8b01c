"""Sublayers, keys and values, virtual tokens: each place against a computation by hand, on every family."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from graft.core.insert import Insert, KeyValues, VirtualTokens
from graft.core.method import Method
from models import CONFIGS, inputs, tiny_base, tiny_model

DECODERS = [family for family in CONFIGS if family not in ("bert", "roberta", "t5")]


class Probe(Insert):
    """Remembers what it saw; adds a constant."""

    def __init__(self, add: float = 0.0) -> None:
        super().__init__()
        self.add, self.seen = add, []

    def forward(self, x, y):
        self.seen.append((x, y))
        return y + self.add


class Front(VirtualTokens):
    def __init__(self, front: torch.Tensor, back: torch.Tensor | None = None) -> None:
        super().__init__()
        self.front, self.back = nn.Parameter(front), nn.Parameter(front[:0] if back is None else back)

    def around(self):
        return self.front, self.back


class Pairs(KeyValues):
    def __init__(self, keys: torch.Tensor, values: torch.Tensor, ahead: int = 0) -> None:
        super().__init__()
        self.keys, self.values, self.ahead = nn.Parameter(keys), nn.Parameter(values), ahead

    def keys_values(self):
        return self.keys, self.values


class At(Method):
    """Puts what `make(site)` gives at every site of a kind."""

    def __init__(self, kind, make):
        object.__setattr__(self, "places", (kind, make))

    def assemble(self, sites):
        kind, make = self.places
        return [(site, make(site)) for site in sites if site.kind == kind]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_sublayer_is_what_lies_between_its_first_and_last_projection(family, kind):
    base, keywords = tiny_base(family), inputs(family)
    adapter = base.attach("x", At(kind, lambda site: Probe()))
    blocks = [site for site in base.sites if site.kind == "block"]
    assert len(adapter.inserts) == len(blocks)
    before = base(**keywords).logits
    entered = {}
    for site, _ in adapter.inserts:
        module = base.model.get_submodule(site.entry)
        module.register_forward_pre_hook(lambda m, args, name=site.name: entered.__setitem__(name, args[0]))
    with base.using("x"):
        assert torch.equal(base(**keywords).logits, before)
    for site, insert in adapter.inserts:
        ((x, y),) = insert.seen
        assert torch.equal(x, entered[site.name]) and x.shape == y.shape
        assert x.shape[-1] == site.in_features == site.out_features


def test_cross_attention_is_a_place_of_its_own():
    base = tiny_base("t5")
    kinds = [site.kind for site in base.sites if site.kind in ("attention", "cross", "mlp")]
    assert kinds == ["attention", "mlp"] * 2 + ["attention", "cross", "mlp"] * 2


def test_no_tensor_is_left_in_the_route_and_no_hook_on_the_model():
    base = tiny_base()
    base.attach("x", At("mlp", lambda site: Probe(1.0)))
    with base.routed(["x"] * 3), torch.no_grad():
        from graft.core.route import Taps, current

        base.model(inputs("llama")["ids"])
        assert current().taps == Taps()
    base.detach("x")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.modules())


def test_inserts_at_one_module_run_in_the_order_of_their_adapter():
    """Whatever kinds they have, and whoever came to the base first."""
    double = lambda site: type("Double", (Insert,), {"forward": lambda self, x, y: 2 * y})()
    base, keywords = tiny_base(), inputs("llama")
    at_mlp = At("mlp", lambda site: Probe(1.0))
    at_linear = At("linear", double)
    base.attach("first", [at_linear, at_mlp])
    base.attach("second", [at_mlp, at_linear])
    assert not torch.equal(
        base(**keywords, adapters=["first"] * 3).logits, base(**keywords, adapters=["second"] * 3).logits
    )


@pytest.mark.parametrize("family", [f for f in CONFIGS if f != "t5"])
def test_a_front_equals_its_embeddings_given_by_hand(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    table = base.model.get_input_embeddings()
    front, back = table(torch.tensor([5, 6])).detach(), table(torch.tensor([7])).detach()
    base.attach("x", At("prompt", lambda site: Front(front, back)))
    around = torch.cat([torch.tensor([[5, 6]] * 3), ids, torch.tensor([[7]] * 3)], 1)
    with base.using("x"):
        ours = base(ids).logits
    assert_close(ours, base(around).logits[:, 2:-1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert", "roberta"])
def test_fronts_of_any_length_share_a_batch_also_with_padding(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    base.attach("long", At("prompt", lambda site: Front(torch.randn(5, 64) * 0.3)))
    base.attach("short", At("prompt", lambda site: Front(torch.randn(2, 64) * 0.3)))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    rows = ["long", "short", None]
    mixed = base(ids, adapters=rows, attention_mask=mask).logits
    for row, name in enumerate(rows):
        length = int(mask[row].sum())
        with base.using(name):
            alone = base(ids[row : row + 1, :length]).logits[0]
        assert_close(mixed[row, :length], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_the_state_of_a_vector_behind_the_text_stands_first_where_an_insert_reads_it(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    table = base.model.get_input_embeddings()
    behind = lambda site, *words: Front(
        table(torch.tensor([5])).detach(), table(torch.tensor(words)).detach()
    )
    reader = lambda site: setattr(made := behind(site, 9, 10), "reads", 1) or made
    base.attach("x", [At("prompt", lambda site: behind(site, 7, 8)), At("prompt", reader)])
    around = torch.cat([torch.tensor([[5, 5]] * 3), ids, torch.tensor([[7, 8, 9, 10]] * 3)], 1)
    wanted = base.hidden(around)
    ours = base.hidden(ids, adapters=["x", None, "x"])[[0, 2]]
    assert_close(ours[:, 0], wanted[[0, 2], -1], atol=2e-5, rtol=1e-4)
    assert_close(ours[:, 1:], wanted[[0, 2], 3:-4], atol=2e-5, rtol=1e-4)
    assert (ours[:, 0] - wanted[[0, 2], 2]).abs().max() > 1e-2
    assert_close(base.hidden(ids, adapters=["x", None, "x"])[1], base.hidden(ids)[1], atol=2e-5, rtol=1e-4)


def test_an_encoder_front_is_read_by_the_decoder():
    base, keywords = tiny_base("t5"), inputs("t5")
    table = base.model.get_input_embeddings()
    base.attach("x", At("prompt", lambda site: Front(table(torch.tensor([5, 6])).detach())))
    base.attach("y", At("prompt", lambda site: Front(table(torch.tensor([8])).detach())))
    around = torch.cat([torch.tensor([[5, 6]] * 3), keywords["ids"]], 1)
    wanted = base(around, decoder_input_ids=keywords["decoder_input_ids"]).logits
    with base.using("x"):
        assert_close(base(**keywords).logits, wanted, atol=2e-5, rtol=1e-4)
    assert_close(
        base(**keywords, adapters=["x", "y", "x"]).logits[[0, 2]], wanted[[0, 2]], atol=2e-5, rtol=1e-4
    )


def past(model, ids):
    """The keys and values that a model computes for ids: one row, per layer (heads, p, width)."""
    cache = model(ids, use_cache=True).past_key_values
    return [(layer.keys[0].detach(), layer.values[0].detach()) for layer in cache.layers]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "gemma"])
def test_added_keys_and_values_equal_a_filled_cache(family, implementation):
    base, ids = tiny_base(family), inputs(family)["ids"]
    base.model.set_attn_implementation(implementation)
    front = torch.tensor([[5, 6, 9]])
    layers = iter(past(base.model, front))
    base.attach("x", At("kv", lambda site: Pairs(*next(layers), ahead=3)))
    wanted = base(torch.cat([front.expand(3, -1), ids], 1)).logits[:, 3:]
    with base.using("x"):
        assert_close(base(ids).logits, wanted, atol=3e-5, rtol=1e-4)
    base.detach("x")
    assert base.model.config._attn_implementation == implementation


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_rows_with_and_without_added_keys_share_a_batch(family):
    base, keywords = tiny_base(family), inputs(family)
    heads = {"llama": 2}.get(family, 4)
    for name, p in (("long", 4), ("short", 1)):
        base.attach(
            name, At("kv", lambda site, p=p: Pairs(torch.randn(heads, p, 16), torch.randn(heads, p, 16)))
        )
    rows = ["long", None, "short"]
    mixed = base(**keywords, adapters=rows).logits
    for row, name in enumerate(rows):
        with base.using(name):
            alone = base(**{k: v[row : row + 1] for k, v in keywords.items()}).logits
        assert_close(mixed[row : row + 1], alone, atol=2e-5, rtol=1e-4)
    with base.using("long"):
        moved = base(**keywords).logits
    with base.using(None):
        assert (moved - base(**keywords).logits).abs().max() > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_what_was_added(checkpointing):
    gradients = []
    for on in (False, checkpointing):
        torch.manual_seed(0)
        base, ids = tiny_base(), inputs("llama")["ids"]
        methods = [
            At("kv", lambda site: Pairs(torch.randn(2, 3, 16), torch.randn(2, 3, 16))),
            At("prompt", lambda site: Front(torch.randn(2, 64))),
            At("mlp", lambda site: nn_scale(site)),
        ]
        adapter = base.attach("x", methods)
        base.checkpointing(on)
        base.train()
        with base.using("x"):
            base(ids, use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for p in adapter.parameters()])
        assert all(g is not None and g.abs().max() > 0 for g in gradients[-1] if g is None or g.numel())
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-4)


class Scaled(Insert):
    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x, y):
        return y + self.g.to(y.dtype) * x


def nn_scale(site):
    return Scaled(site.out_features)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_generation_with_a_cache_equals_generation_without(family):
    model = tiny_model(family)
    from graft.base.base import Base

    base = Base(model)
    heads = {"llama": 2}.get(family, 4)
    methods = [
        At("kv", lambda site: Pairs(torch.randn(heads, 3, 16), torch.randn(heads, 3, 16))),
        At("prompt", lambda site: Front(torch.randn(2, 64))),
    ]
    base.attach("x", methods)
    ids, live = inputs(family)["ids"], torch.ones(3, 7, dtype=torch.long)
    if family != "t5":
        live[1, :3] = 0
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), base.routed(["x", "x", "x"]):
        out = [model.generate(ids, attention_mask=live, use_cache=cache, **how) for cache in (True, False)]
    assert torch.equal(*out)
