"""Packed documents learn exactly what they would learn alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stage_tools import feed_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from graft.core.positions import first_position, obstacle
from graft.data.encode import IGNORED, Example
from graft.data.pack import best_fit, packed

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
QUIET = {"attention_dropout": 0.0, "dropout": 0.0}
CONFIGS = {
    "llama": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "gpt_neox": SMALL,
    "opt": SMALL | QUIET | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 60, "n_positions": 64, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 1,
                        "max_position_embeddings": 66},
}  # fmt: skip
MASKED = ("bert", "roberta")


def model(family):
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    net = auto.from_config(AutoConfig.for_model(family, **CONFIGS[family]))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)  # far from the nearly linear beginning, so that a leak shows
    return net.train()


def loss_and_gradients(net, batches, causal):
    net.zero_grad()
    total = 0.0
    for batch in batches:
        logits = net(**batch.inputs, use_cache=False).logits if causal else net(**batch.inputs).logits
        logits, labels = (logits[:, :-1], batch.labels[:, 1:]) if causal else (logits, batch.labels)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


class Tokens:
    pad_token_id, eos_token_id, mask_token_id = 0, 2, 4


def documents(causal):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for k, length in enumerate([9, 3, 14, 2, 6, 11]):
        ids = torch.randint(5, 60, (length,), generator=generator).tolist()
        labels = [IGNORED if j < length // 3 or (not causal and j % 2) else t for j, t in enumerate(ids)]
        rows.append(Example(ids, labels, f"f:{k}"))
    return rows


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_equals_unpacked_in_loss_and_gradients(family, checkpointing):
    causal = family not in MASKED
    net = model(family)
    if checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    shape = {"batch_size": 6, "max_length": 20, "family": "causal" if causal else "masked", "stage": "sft"}
    feeds = [
        feed_of(documents(causal), Tokens, micro_batch_size=1, pack=False, **shape),
        feed_of(
            documents(causal),
            Tokens,
            micro_batch_size=2,
            pack=True,
            first_position=first_position(net.config),
            **shape,
        ),
    ]
    (plain, packs) = (feed.step(0, 0) for feed in feeds)
    assert len(packs) == 2 and packs[0].inputs["attention_mask"].ndim == 4 and len(plain) == 6
    assert sum(b.tokens for b in plain) == sum(b.tokens for b in packs)
    (loss, grads), (again, others) = (loss_and_gradients(net, batches, causal) for batches in (plain, packs))
    assert again == pytest.approx(loss, rel=1e-5) and grads.keys() == others.keys()
    for name in grads:
        torch.testing.assert_close(
            others[name], grads[name], rtol=1e-5, atol=1e-5 * max(1.0, grads[name].abs().max().item())
        )


def test_without_the_block_mask_the_same_test_would_fail():
    net = model("llama")
    shape = {"batch_size": 6, "micro_batch_size": 6, "max_length": 40}
    (batch,) = feed_of(documents(True), Tokens, pack=True, **shape).step(0, 0)
    whole, _ = loss_and_gradients(net, [batch], True)
    batch.inputs["attention_mask"] = torch.ones_like(batch.inputs["attention_mask"]).tril()
    leaking, _ = loss_and_gradients(net, [batch], True)
    assert abs(leaking - whole) > 1e-2


def test_the_mask_is_block_diagonal_and_no_row_of_it_is_empty():
    inputs, labels = packed(
        [[([5, 6], [5, 6]), ([7], [7])], [([8], [8])]], pad=0, causal=True, first_position=2
    )
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert inputs["position_ids"].tolist() == [[2, 3, 2], [2, 2, 2]]
    assert labels.tolist() == [[-100, 6, -100], [-100, -100, -100]]
    assert inputs["attention_mask"].int().tolist() == [
        [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]],
        [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]],
    ]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(30, 60))
def test_packing_keeps_every_document_and_no_group_is_too_long(lengths, size):
    groups = best_fit(lengths, size)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= size for group in groups)
    # Two groups that fit together would have been one, so at most one group is half empty.
    assert len(groups) <= 2 * sum(lengths) / size + 1


@given(
    st.lists(st.lists(st.integers(5, 59), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(12, 30),
)
def test_packed_batches_hold_every_token_once(rows, size):
    feed = feed_of(
        [Example(ids, ids, f"f:{i}") for i, ids in enumerate(rows)], Tokens, batch_size=5, max_length=size
    )
    documents, sources = [], []
    for index in range(feed.steps_per_epoch):
        for batch in feed.step(0, index):
            alone = (
                batch.inputs["attention_mask"][:, 0].sum(2) == 1
            )  # a document begins where a token sees itself only
            for ids, begins in zip(batch.inputs["input_ids"].tolist(), alone.tolist(), strict=True):
                for j, token in enumerate(ids):
                    if token != Tokens.pad_token_id:
                        documents.append(([] if begins[j] else documents.pop()) + [token])
            sources += batch.sources
    assert sorted(documents) == sorted(rows) and sorted(sources) == sorted(f"f:{i}" for i in range(len(rows)))


def test_what_a_config_says_against_packing_is_known():
    def say(family, length=512, **changes):
        return obstacle(AutoConfig.for_model(family, **changes), length)

    assert say("llama") is None and say("gpt2") is None and say("bert") is None
    assert "encoder-decoder" in say("t5")
    assert say("mistral", 512, sliding_window=4096) is None and "window of 256" in say(
        "mistral", 512, sliding_window=256
    )
    assert "window of 128" in say("llama4_text", 512, attention_chunk_size=128)
    assert say("qwen2", 512, sliding_window=256) is None  # use_sliding_window is False
    assert "eager" in say("llama", attn_implementation="eager")
    assert (
        first_position(AutoConfig.for_model("roberta")) == 2
        and first_position(AutoConfig.for_model("bert")) == 0
    )
