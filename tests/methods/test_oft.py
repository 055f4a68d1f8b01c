"""OFT: rotations as in PEFT, exact merges, what an orthogonal matrix keeps. Oracles: PEFT, torch.linalg."""

import peft
import pytest
import torch
from peft_oracle import assert_files_travel_both_ways, assert_gradients_agree
from torch.nn import functional as F
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.oft import OFT
from graft.quant import quantise_model
from models import inputs, randomise, tiny_base, tiny_model

QV = ["q_proj", "v_proj"]
VARIANTS = {
    "series": {"oft_block_size": 8},
    "exact": {"oft_block_size": 8, "use_cayley_neumann": False},
    "by_number": {"oft_block_size": 0, "r": 4},
    "shared": {"oft_block_size": 16, "block_share": True},
    "adjusted": {"oft_block_size": 20},  # 16 on 64 features
    "coft": {"oft_block_size": 8, "coft": True, "eps": 0.5},
    "all_biases": {"oft_block_size": 8, "bias": "all"},
    "own_biases": {"oft_block_size": 8, "bias": "oft_only"},
    "one_layer": {"oft_block_size": 8, "layers_to_transform": [1]},
    "head_saved": {"oft_block_size": 8, "modules_to_save": ["lm_head"]},
    **{f"{n}_terms": {"oft_block_size": 8, "num_cayley_neumann_terms": n} for n in (2, 3, 4, 6)},
}


def config(variant, targets=QV):
    return peft.OFTConfig(target_modules=targets, **VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_travel_both_ways(variant, tmp_path):
    model = tiny_model("llama", attention_bias="biases" in variant)
    assert_files_travel_both_ways(model, config(variant), tmp_path)


def test_all_linear_of_bert_travels_both_ways(tmp_path):
    assert_files_travel_both_ways(tiny_model("bert"), config("series", "all-linear"), tmp_path, "bert")


@pytest.mark.parametrize("variant", ["series", "exact", "shared", "coft", "own_biases"])
def test_gradients_and_training_equal_pefts(variant, tmp_path):
    assert_gradients_agree(tiny_model("llama", attention_bias=True), config(variant), tmp_path)


@pytest.mark.parametrize(
    ("exact", "rotation"), [(True, [[0.6, -0.8], [0.8, 0.6]]), (False, [[0.5625, 0.75], [-0.75, 0.5625]])]
)
def test_by_hand(exact, rotation):
    settings = {"oft_block_size": 2, "use_cayley_neumann": not exact, "target_modules": ("q_proj",)}
    insert = tiny_base().attach("x", OFT(**settings)).inserts[0][1]
    with torch.no_grad():
        insert.angles.fill_(0.5)  # Q² = −I/4:  3/5 I − 8/5 Q;  I + 2Q − 2/4 I − 2/4 Q + 1/16 I
    assert_close(torch.eye(2) + insert.change()[0], torch.tensor(rotation))


def test_the_two_branches_turn_opposite_ways_and_the_series_tends_to_the_inverse():
    few, many = (insert(num_cayley_neumann_terms=terms) for terms in (5, 40))
    exact = insert(use_cayley_neumann=False)
    eye, Q = torch.eye(8, dtype=torch.float64), skew(exact)
    rotation = eye + exact.change()
    assert_close(rotation, (eye - Q) @ torch.linalg.inv(eye + Q))
    assert_close(rotation @ rotation.mT, eye.expand_as(rotation))
    assert_close(eye + many.change(), rotation.mT)
    assert 1e-6 < (eye + few.change() - rotation.mT).abs().max() < 1e-1


def insert(width=32, **settings):
    """An insert in fp64 at a projection of `width` features, with random angles."""
    base = tiny_base(hidden_size=width)
    adapter = base.attach("x", OFT(oft_block_size=8, target_modules=("q_proj",), **settings))
    randomise(adapter, scale=0.05)
    return adapter.inserts[0][1].double()


def skew(insert):
    """Q from the angles, entry by entry."""
    Q = torch.zeros(len(insert.angles), 8, 8, dtype=torch.float64)
    for block, angles in zip(Q, insert.angles.detach(), strict=True):
        entries = iter(angles)
        for i in range(8):
            for j in range(i + 1, 8):
                block[i, j] = next(entries)
                block[j, i] = -block[i, j]
    return Q


@pytest.mark.parametrize("settings", [{}, {"use_cayley_neumann": False}, {"block_share": True}])
def test_the_merged_weight_is_exact_in_fp64(settings):
    turned = insert(**settings)
    x, W = torch.randn(5, 32, dtype=torch.float64), torch.randn(24, 32, dtype=torch.float64)
    R = torch.block_diag(*(turned.change().detach() + torch.eye(8)).expand(4, 8, 8))
    merged, _ = turned.merge(W, None)
    assert ((F.linear(x, merged) - F.linear(x @ R, W)).norm() / F.linear(x, W).norm()) < 1e-12


def test_an_exact_rotation_keeps_lengths_and_angles_of_the_neurons():
    W = torch.randn(24, 32, dtype=torch.float64)
    merged, _ = insert(use_cayley_neumann=False).merge(W, None)
    assert_close(merged @ merged.T, W @ W.T)
    assert (merged - W).abs().max() > 1e-2


def test_packed_weights_are_turned_as_their_dequantised_values_are():
    packed, plain = Base(quantise_model(tiny_model("llama"), "nf4")), tiny_base()
    for name, module in packed.model.named_modules():
        if hasattr(module, "codes"):
            plain.model.get_submodule(name).weight.data = module.weight.detach().clone()
    answers, gradients = [], []
    for base in (packed, plain):
        adapter = base.attach("x", OFT(oft_block_size=8))
        randomise(adapter)
        with base.using("x"):
            answers.append(base(**inputs("llama")).logits)
        answers[-1].square().mean().backward()
        gradients.append([p.grad for p in adapter.parameters()])
    assert_close(answers[0], answers[1], atol=1e-5, rtol=1e-4)
    for ours, wanted in zip(*gradients, strict=True):
        assert_close(ours, wanted, atol=1e-6, rtol=1e-3)


def test_no_decoded_weight_is_kept_for_backward():
    base = Base(quantise_model(tiny_model("llama"), "nf4"))
    randomise(base.attach("x", OFT(oft_block_size=8, target_modules=("down_proj",))))
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        base.using("x"),
    ):
        base(**inputs("llama"))
    shape = base.model.get_submodule("model.layers.0.mlp.down_proj").weight.shape
    assert shape == (64, 128) and not any(
        t.is_floating_point() and t.shape in (shape, shape[::-1]) for t in kept
    )


def test_dropout_leaves_whole_blocks_unturned_and_only_in_training():
    turned = insert(module_dropout=0.5)
    change = turned.change()
    assert torch.equal(turned.dropout(change), change)
    dropped = turned.train().dropout(change)
    still = [bool((block == 0).all()) for block in dropped]
    assert sum(still) == 2 and all(
        torch.equal(d, c) for d, c, s in zip(dropped, change, still, strict=True) if not s
    )


def test_constrained_angles_stay_in_bounds():
    base = tiny_base()
    adapter = base.attach("x", OFT(oft_block_size=8, coft=True, eps=0.1, target_modules=("q_proj",)))
    randomise(adapter)
    adapter.after_step(1, 1)
    for _, insert in adapter.inserts:  # 8 blocks share eps
        wanted = torch.full((8,), 0.1 / 8**0.5, dtype=torch.float64)
        assert_close(skew(insert).norm(dim=(1, 2)), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"r": 4}, {"oft_block_size": 0}, {"module_dropout": 1.0}, {"bias": "lora_only"}, {"eps": 0.0}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UsageError):
        OFT(**settings)
