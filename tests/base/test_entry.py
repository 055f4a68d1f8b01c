"""Inside `using`, the model called by itself answers as the base does, or says what to call instead."""

import contextlib
import copy

import pytest
import torch
from bases import BASES, QUANTISED
from laws import IDS, for_decoder, moved
from torch.testing import assert_close

from graft.base.base import Base
from graft.core.registry import find, names
from graft.core.route import current, decided
from graft.errors import AdapterError, ModelError, UsageError
from graft.methods.ladder import Ladder
from graft.methods.lora import LoRA
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from models import inputs, randomise, tiny_base, tiny_model


def losses_and_gradients(base, adapter, call):
    """Return the loss of a forward in training mode, and the gradients of the adapter."""
    for p in adapter.parameters():
        p.grad = None
    base.train()
    torch.manual_seed(5)
    with base.using(adapter.name):
        loss = call(IDS, **for_decoder(base)).logits.float().square().mean()
    loss.backward()
    base.train(False)
    return loss.detach(), [p.grad for p in adapter.parameters()]


@pytest.mark.parametrize(
    "kind",
    ["fp32", "nf4", *(pytest.param(k, marks=pytest.mark.slow) for k in ("int4", "encoder", "seq2seq"))],
)
@pytest.mark.parametrize("name", names())
def test_every_method_answers_and_learns_as_through_the_base(name, kind):
    method = find(name)()
    if kind in QUANTISED and not method.quantisable:
        pytest.skip(str(method.quantisable))
    base = BASES[kind]()
    bare = base.model(IDS, **for_decoder(base)).logits
    adapter = moved(base, method)
    if method.classifies():
        with base.using("x"), pytest.raises(ModelError, match="task head"):
            base.model(IDS, **for_decoder(base))
        return
    with base.using("x"), torch.no_grad():
        ours, wanted = (call(IDS, **for_decoder(base)).logits for call in (base.model, base))
    assert torch.equal(ours, wanted) and not torch.equal(ours, bare)
    ours, wanted = (losses_and_gradients(base, adapter, call) for call in (base.model, base))
    assert torch.equal(ours[0], wanted[0])
    for one, other in zip(ours[1], wanted[1], strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert torch.equal(base.model(IDS, **for_decoder(base)).logits, bare), "outside the block"


WRITING = [
    LoRA(),
    Pfeiffer(),
    PrefixTuning(num_virtual_tokens=3),
    PromptTuning(num_virtual_tokens=3, prompt_tuning_init="RANDOM"),
    Ladder(reduction_factor=2),
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("method", WRITING, ids=lambda method: method.name())
def test_transformers_generate_writes_what_the_base_writes(method, family):
    base = tiny_base(family)
    moved(base, method)
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = inputs(family)["ids"]
    with base.using("x"):
        ours = base.model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        beams = base.model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=2, **how)
    with base.routed(["x"] * len(ids)):
        wanted = base.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **how)
        wanted_beams = base.model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=2, **how)
    bare = base.model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    assert torch.equal(ours, wanted) and torch.equal(beams, wanted_beams) and not torch.equal(ours, bare)


@pytest.mark.parametrize("method", WRITING[:4], ids=lambda method: method.name())
def test_an_encoder_that_transformers_calls_by_itself_has_the_adapter(method):
    base = tiny_base("t5")
    moved(base, method)
    ids = inputs("t5")["ids"]
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with base.using("x"):
        ours = base.model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    with base.routed(["x"] * len(ids)):
        wanted = base.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **how)
    assert torch.equal(ours, wanted)


def test_an_encoder_and_a_decoder_apart_are_refused_where_the_adapter_links_them():
    base = tiny_base("t5")
    moved(base, Ladder(reduction_factor=2))
    with base.using("x"), pytest.raises(UsageError, match=r"base\.generate"):
        base.model.generate(inputs("t5")["ids"], max_new_tokens=2)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "ladder", "full"])
def test_checkpointing_that_others_switched_on_keeps_the_gradients(name, reentrant):
    found = []
    for on in (False, True):
        base = BASES["fp32"]()
        adapters = [moved(base, find(name)(), key, seed) for seed, key in enumerate(("x", "y"))]
        if on:
            base.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        base.train()
        loss = 0
        for key, call in (("x", base.model), ("y", base)):
            with base.using(key):
                loss = loss + call(IDS, use_cache=False).logits.square().mean()
        loss.backward()
        found.append([p.grad for adapter in adapters for p in adapter.parameters()])
        base.detach("x")
        base.detach("y")
        functions = [vars(m).get("_gradient_checkpointing_func") for m in base.model.modules()]
        assert not any(type(f).__module__.startswith("graft") for f in functions), "a trace is left"
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            assert_close(again, plain, atol=1e-7, rtol=1e-5)


def test_outside_the_block_the_model_is_bare_and_its_backward_is_refused_by_torch():
    base, batch = tiny_base(), inputs("llama")
    randomise(base.attach("x", LoRA()))
    with base.using("x"), base.using(None):
        assert torch.equal(base.model(batch["ids"]).logits, base(**batch).logits)
    with pytest.raises(RuntimeError, match="does not require grad"):
        base.model(batch["ids"]).logits.mean().backward()


def test_the_backbone_by_itself_has_the_adapter_too():
    base, ids = tiny_base(), inputs("llama")["ids"]
    randomise(base.attach("x", LoRA()))
    with base.using("x"):
        assert torch.equal(base.model.model(ids, use_cache=False).last_hidden_state, base.hidden(ids))


def test_rows_that_are_routed_stay_routed_inside_the_block():
    base, ids = tiny_base(), inputs("llama")["ids"]
    for seed, name in enumerate(("x", "y")):
        randomise(base.attach(name, LoRA()), seed)
    rows = [None, "x", "y"]
    wanted = base(ids, adapters=rows).logits
    with base.using("x"), base.routed(rows):
        assert torch.equal(base.model(ids).logits, wanted)


def test_what_the_base_looks_at_itself_is_not_changed_by_the_block():
    base, other = tiny_base("gemma2"), tiny_base("gemma2")
    for each in (base, other):
        randomise(each.attach("x", LoRA()))
    with base.using("x"):
        base.probe()
        base.attach("y", PromptTuning(num_virtual_tokens=2, prompt_tuning_init="RANDOM"))
        inside = base._head._bare, base._head._scale_and_cap, base.sharing()
    other.probe()
    assert inside == (other._head._bare, other._head._scale_and_cap, other.sharing())


def test_an_interrupted_forward_leaves_nothing_behind():
    base, ids = tiny_base(), inputs("llama")["ids"]
    bare = base.model(ids).logits
    randomise(base.attach("x", find("full")()))

    def interrupt(*_):
        raise KeyboardInterrupt

    with base.using("x"):
        wanted = base.model(ids).logits
        handle = base.model.model.layers[1].register_forward_hook(interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            base.model(ids)
        handle.remove()
        assert torch.equal(base.model(ids).logits, wanted)
        handle = base.model.model.layers[1].register_forward_hook(interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            base.model(ids)
        handle.remove()
    assert current() is None and not decided()
    assert torch.equal(base.model(ids).logits, bare)


@pytest.mark.parametrize("through", ["base", "model"])
def test_a_forward_inside_a_forward_does_not_end_it(through):
    base, ids = tiny_base(), inputs("llama")["ids"]
    for seed, name in enumerate(("x", "y")):
        randomise(base.attach(name, LoRA()), seed)
    asked = []

    def ask(*_):
        if not asked:
            asked.append(None)
            with base.using(name):
                asked[0] = (base if through == "base" else base.model)(ids).logits

    for name in ("x", "y"):
        asked.clear()
        with base.using(name):
            inner = base(ids).logits
        with base.using("x"):
            wanted = base(ids).logits
            handle = base.model.model.layers[0].register_forward_hook(ask)
            assert torch.equal(base.model(ids).logits, wanted)
            handle.remove()
        assert torch.equal(asked[0], inner) and current() is None and not decided()


def test_copies_of_the_model_are_refused_inside_the_block_and_bare_outside():
    base, ids = tiny_base(), inputs("llama")["ids"]
    bare = base.model(ids).logits
    randomise(base.attach("x", LoRA()))
    twin = copy.deepcopy(base.model)
    assert torch.equal(twin(ids).logits, bare)
    with base.using("x"), pytest.raises(UsageError, match=r"a copy of base\.model"):
        twin(ids)
    replica = base.model._replicate_for_data_parallel()
    with base.using("x"), pytest.raises(UsageError, match=r"a copy of base\.model"):
        replica(ids)


def test_a_merged_adapter_is_refused_here_too():
    base, ids = tiny_base(), inputs("llama")["ids"]
    randomise(base.attach("x", LoRA()))
    with base.using("x"):
        base.merge("x")
        with pytest.raises(AdapterError, match="merged"):
            base.model(ids)


def test_a_cache_is_refused_under_an_adapter_that_allows_none(monkeypatch):
    base, ids = tiny_base(), inputs("llama")["ids"]
    moved(base, LoRA())
    monkeypatch.setattr(LoRA, "cacheable", False)
    with base.using("x"), pytest.raises(UsageError, match="use_cache=False"):
        base.model.generate(ids, max_new_tokens=2)
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "use_cache": False}
    with base.using("x"):
        ours = base.model.generate(ids, **how)
    with base.routed(["x"] * len(ids)):
        assert torch.equal(ours, base.model.generate(ids, **how))


def test_the_models_own_mode_switches_the_adapters_dropout():
    base, ids = tiny_base(), inputs("llama")["ids"]
    adapter = base.attach("x", LoRA(lora_dropout=0.5))
    randomise(adapter)
    base.model.train()
    assert all(insert.training for _, insert in adapter.inserts)
    with base.using("x"), torch.no_grad():
        assert not torch.equal(base.model(ids).logits, base.model(ids).logits)
    base.model.eval()
    assert not any(insert.training for _, insert in adapter.inserts)
    twin = copy.deepcopy(base.model).train()
    assert twin.training and not base.model.training and not any(i.training for _, i in adapter.inserts)
    base.detach("x")
    assert not {"train", "zero_grad"} & vars(base.model).keys()


def test_the_models_own_zero_grad_clears_the_adapters_gradients():
    base, ids = tiny_base(), inputs("llama")["ids"]
    adapter = base.attach("x", LoRA())
    with base.using("x"):
        base.model(ids).logits.mean().backward()
    assert any(p.grad is not None for p in adapter.parameters())
    base.model.zero_grad()
    assert all(p.grad is None for p in adapter.parameters())


@pytest.mark.slow
def test_a_model_that_others_compiled_answers_with_the_adapter_of_the_block():
    base, ids = tiny_base(), inputs("llama")["ids"]
    randomise(base.attach("x", LoRA()))
    compiled = torch.compile(base.model, backend="eager")
    bare = base.model(ids).logits
    for name in (None, "x", None):
        with base.using(name):
            assert_close(compiled(ids).logits, base(ids).logits)
    with base.using("x"):
        assert not torch.allclose(compiled(ids).logits, bare)


def test_two_bases_have_blocks_of_their_own():
    one, two, ids = tiny_base(), Base(tiny_model("llama", seed=4)), inputs("llama")["ids"]
    for base in (one, two):
        randomise(base.attach("x", LoRA()))
    bare = two(ids).logits
    with one.using("x"):
        assert torch.equal(two.model(ids).logits, bare)
