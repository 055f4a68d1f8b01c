import copy
from types import SimpleNamespace

import pytest
import torch
from stage_tools import feed_of
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from graft.base.base import Base
from graft.data.encode import Example
from graft.errors import AdapterError, MergeError, SiteError, UsageError
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.methods.task_head import TaskHead
from graft.objectives.lm import language_modelling
from graft.recipe import Train
from graft.training import Task, Trainer
from models import CONFIGS, inputs, randomise, tiny_base, tiny_model


@pytest.mark.parametrize("family", CONFIGS)
def test_mixed_rows_equal_separate_runs_on_every_family(family):
    base, batch = tiny_base(family), inputs(family, rows=4)
    for seed, (name, method) in enumerate(
        {"a": LoRA(r=4), "b": LoRA(r=2, use_rslora=True), "c": LoRA(r=3, use_dora=True)}.items()
    ):
        randomise(base.attach(name, method), seed)
    rows = ["c", "a", None, "b"]
    mixed, bare = base(**batch, adapters=rows).logits, base(**batch).logits
    for row, name in enumerate(rows):
        with base.using(name):
            alone = base(**{k: v[row : row + 1] for k, v in batch.items()}).logits[0]
        assert_close(mixed[row], alone, atol=5e-5, rtol=1e-5)  # only the order of additions may differ
        assert name is None or (alone - bare[row]).abs().max() > 1e-2


@pytest.mark.parametrize("family", CONFIGS)
def test_detach_leaves_no_trace_on_every_family(family):
    base, batch = tiny_base(family), inputs(family)
    before, keys, code = base(**batch).logits, list(base.model.state_dict()), type(base.model)
    randomise(base.attach("x", LoRA(r=4, bias="all")))
    with base.using("x"):
        assert not torch.equal(base(**batch).logits, before)
    base.detach("x")
    assert (
        torch.equal(base(**batch).logits, before)
        and list(base.model.state_dict()) == keys
        and type(base.model) is code
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.modules())


@pytest.mark.parametrize("family", CONFIGS)
def test_head_on_hidden_states_gives_the_models_own_logits(family):
    changes = {"final_logit_softcapping": 5.0} if family == "gemma2" else {}
    base, batch = tiny_base(family, **changes), inputs(family)
    randomise(
        base.attach(
            "x", LoRA(r=4, target_modules=r".*(lm_head|decoder|q_proj)" if family != "bert" else "all-linear")
        )
        if family in ("llama", "bert")
        else base.attach("x", LoRA())
    )
    with base.using("x"):
        assert_close(base.logits(base.hidden(**batch)), base(**batch).logits, atol=1e-6, rtol=0)


def test_padded_batches_are_reordered_with_their_masks():
    base = tiny_base("llama")
    randomise(base.attach("x", LoRA()))
    ids = inputs("llama")["ids"]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mixed = base(ids, adapters=["x", None, "x"], attention_mask=mask).logits
    with base.using("x"):
        assert_close(mixed[0], base(ids, attention_mask=mask).logits[0])
    assert_close(mixed[1, :5], base(ids, attention_mask=mask).logits[1, :5])


def test_an_attached_adapter_answers_only_when_asked():
    base, batch = tiny_base(), inputs("llama")
    before = base(**batch).logits
    randomise(base.attach("x", LoRA()))
    assert torch.equal(base(**batch).logits, before)
    with base.using("x"), base.using(None):
        assert torch.equal(base(**batch).logits, before)


def test_several_inserts_at_one_site_run_in_order_and_merge_in_order():
    base, batch = tiny_base(), inputs("llama")
    randomise(base.attach("x", [LoRA(r=2), LoRA(r=4, target_modules=("q_proj",))]))
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=1e-5, rtol=1e-4)


def test_a_merge_that_would_read_a_changed_weight_is_refused_and_nothing_changes():
    base, batch = tiny_base(), inputs("llama")
    before = base(**batch).logits
    randomise(base.attach("x", [LoRA(r=2), LoRA(r=2, use_dora=True)]))
    with pytest.raises(MergeError, match="LowRank, then LowRank"):
        base.merge("x")
    assert torch.equal(base(**batch).logits, before) and not base.merged


def test_a_merged_adapter_cannot_be_used_twice_and_unmerge_is_exact():
    base, batch = tiny_base(), inputs("llama")
    before = base(**batch).logits
    randomise(base.attach("x", LoRA()))
    base.merge("x")
    with pytest.raises(AdapterError, match="merged"), base.using("x"):
        pass
    base.unmerge("x")
    assert torch.equal(base(**batch).logits, before)


def test_merging_a_tied_head_leaves_the_embeddings_alone():
    base, batch = Base(tiny_model("llama", tie_word_embeddings=True)), inputs("llama")
    randomise(base.attach("x", LoRA(target_modules=("lm_head",))))
    with base.using("x"):
        attached = base(**batch).logits
    table = base.model.get_input_embeddings().weight.clone()
    merged = base.merge("x")
    assert merged.untied and torch.equal(base.model.get_input_embeddings().weight, table)
    assert_close(base(**batch).logits, attached, atol=1e-5, rtol=1e-4)


def test_gradients_of_two_adapters_in_one_backward_survive_checkpointing():
    batch, grads = inputs("llama"), []
    for checkpointed in (False, True):
        base = tiny_base()
        adapters = [base.attach("a", LoRA(r=2)), base.attach("b", Full())]
        for seed, adapter in enumerate(adapters):
            randomise(adapter, seed, 0.05)
        base.checkpointing(checkpointed)
        base.train()
        loss = 0
        for name in ("a", "b"):
            with base.using(name):
                loss = loss + base(**batch, use_cache=False).logits.square().mean()
        loss.backward()
        grads.append([p.grad for adapter in adapters for p in adapter.parameters()])
    assert all(g is not None and g.abs().sum() > 0 for g in grads[1])
    for plain, recomputed in zip(*grads, strict=True):
        assert_close(recomputed, plain, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        LoRA(),
        PrefixTuning(num_virtual_tokens=2),
        PromptTuning(num_virtual_tokens=2, prompt_tuning_init="RANDOM"),
    ],
    ids=lambda m: m.name(),
)
def test_a_compiled_forward_is_one_graph(method):
    base, graphs = tiny_base("llama"), CompileCounter()
    base.attach("a", method)
    base.compile(backend=graphs)
    with base.using("a"):
        base(**inputs("llama"), use_cache=False)
    assert graphs.frame_count == 1


def test_a_compiled_base_notices_attach_detach_and_merge():
    base, batch = tiny_base(), inputs("llama")
    bare = base(**batch).logits
    base.compile(backend="eager")
    assert_close(base(**batch).logits, bare)
    randomise(base.attach("x", LoRA()))
    with base.using("x"):
        attached = base(**batch).logits
    assert (attached - bare).abs().max() > 1e-2
    assert_close(base(**batch).logits, bare)
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=1e-5, rtol=1e-4)
    base.unmerge("x")
    base.detach("x")
    assert_close(base(**batch).logits, bare)


def test_the_full_method_trains_tied_tensors_as_one_and_counts_them_once():
    base = Base(tiny_model("llama", tie_word_embeddings=True))
    adapter = base.attach("x", Full())
    assert adapter.count() == sum(p.numel() for p in base.model.parameters()) == base.count()
    assert len(adapter.file_state()) == len({id(p) for p in base.model.parameters()})


def test_full_tuning_leaves_the_bare_base_bit_equal():
    base, batch = tiny_base(), inputs("llama")
    before, bytes_before = base(**batch).logits, copy.deepcopy(base.model.state_dict())
    randomise(base.attach("x", Full()))
    with base.using("x"):
        assert not torch.equal(base(**batch).logits, before)
    assert torch.equal(base(**batch).logits, before)
    assert all(torch.equal(v, bytes_before[k]) for k, v in base.model.state_dict().items())


def test_in_place_rows_are_refused_in_a_mixed_batch_with_the_reason():
    base = tiny_base()
    base.attach("x", Full())
    with pytest.raises(AdapterError, match="which all rows share"):
        base(**inputs("llama"), adapters=["x", None, None])


def test_task_heads_of_two_adapters_answer_their_own_rows():
    base, ids = tiny_base("bert", bare=True), inputs("bert")["ids"]
    randomise(base.attach("a", [LoRA(r=2), TaskHead(num_labels=3)]), 0)
    randomise(base.attach("b", TaskHead(num_labels=5)), 1)
    three, five = base(ids, adapters=["b", "a", "b"])
    assert three.shape == (1, 3) and five.shape == (2, 5)
    with base.using("a"):
        assert_close(base(ids[1:2])[0], three)


def test_the_decoders_head_scores_the_last_live_token_like_transformers():
    from transformers import LlamaForSequenceClassification

    model = tiny_model("llama", pad_token_id=0)
    theirs = LlamaForSequenceClassification._from_config(model.config)
    theirs.model.load_state_dict(model.model.state_dict())
    base, ids = Base(model), inputs("llama")["ids"]
    ids[1, 5:] = 0
    adapter = base.attach("x", TaskHead(num_labels=2))
    with torch.no_grad():
        theirs.score.weight.copy_(adapter.parameters()[0])
    mask = (ids != 0).long()
    with base.using("x"):
        assert_close(
            base(ids, attention_mask=mask)[0], theirs(ids, attention_mask=mask).logits, atol=1e-5, rtol=0
        )


def test_only_the_adapter_that_is_trained_forgets_where_it_was_saved(tmp_path):
    base = tiny_base()
    one, other = base.attach("one", LoRA(r=2)), base.attach("other", LoRA(r=2))
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    rows = [Example([3, 4, 5], [3, 4, 5], "rows:0")] * 2
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2, mask_token_id=None)
    feed = feed_of(rows, tokenizer, batch_size=2, max_length=8, pack=False)
    task = Task(feed, language_modelling)
    Trainer(base, "one", task, Train(max_steps=1, lr=0.1, warmup=0.0), tmp_path / "run").run()
    assert one.folder != (tmp_path / "one").resolve()
    base.train(True)
    assert other.folder == (tmp_path / "other").resolve()


def test_dropout_of_the_base_is_silent_in_training_and_comes_back():
    base, batch = tiny_base("opt", dropout=0.5, attention_dropout=0.5), inputs("opt")
    before = base(**batch).logits
    base.train()
    assert torch.equal(base(**batch).logits, before)
    base.train(dropout=True)
    assert not torch.equal(base(**batch).logits, before)
    base.train(False)
    assert torch.equal(base(**batch).logits, before) and base.model.model.decoder.layers[0].dropout == 0.5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda b: b.attach("x", LoRA(target_modules=("q_porj",))), SiteError, "q_proj"),
        (lambda b: b.attach("x", LoRA(modules_to_save=("lm_haed",))), SiteError, "lm_head"),
        (lambda b: b.attach("taken", LoRA()), AdapterError, "taken"),
        (lambda b: b.detach("tkaen"), AdapterError, "taken"),
        (lambda b: b(torch.ones(2, 3, dtype=torch.long), adapters=["taken"]), UsageError, "2 rows"),
        (lambda b: b(), UsageError, "without rows"),
        (lambda b: b.attach("x", []), UsageError, "no method"),
        (lambda b: b.unmerge("taken"), MergeError, "not the last merge"),
    ],
)
def test_a_mistake_names_what_was_given_and_what_would_fit(call, error, words):
    base = tiny_base()
    base.attach("taken", LoRA())
    with pytest.raises(error, match=words):
        call(base)


def test_the_fingerprint_tells_bases_apart():
    assert tiny_base().fingerprint() == tiny_base().fingerprint() != tiny_base(seed=1).fingerprint()
