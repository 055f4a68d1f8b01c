"""BOFT: butterfly factors as PEFT multiplies them. Oracle: PEFT, with torch's block_diag as its kernel."""

import peft
import pytest
import torch
from peft.tuners.boft import layer as boft_layer
from peft_oracle import assert_files_travel_both_ways, assert_gradients_agree
from torch.nn import functional as F
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.boft import BOFT
from graft.quant import quantise_model
from models import inputs, randomise, tiny_base, tiny_model

QV = ["q_proj", "v_proj"]
VARIANTS = {
    "plain": {},
    "by_number": {"boft_block_size": 0, "boft_block_num": 8},
    "all_biases": {"bias": "all"},
    "own_biases": {"bias": "boft_only"},
    "two_factors": {"boft_n_butterfly_factor": 2},
    "four_factors": {"boft_n_butterfly_factor": 4},
    "blocks_of_two": {"boft_block_size": 2, "boft_n_butterfly_factor": 3},
}


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch):
    """PEFT computes several factors only with its extension, whose one operation is a batch of block_diag."""

    class BlockDiagonal:
        apply = staticmethod(lambda blocks: torch.stack([torch.block_diag(*factor) for factor in blocks]))

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_travel_both_ways(variant, tmp_path):
    model = tiny_model("llama", attention_bias="biases" in variant)
    assert_files_travel_both_ways(model, peft.BOFTConfig(target_modules=QV, **VARIANTS[variant]), tmp_path)


def test_all_linear_of_bert_travels_both_ways(tmp_path):
    config = peft.BOFTConfig(target_modules="all-linear", boft_n_butterfly_factor=2)
    assert_files_travel_both_ways(tiny_model("bert"), config, tmp_path, "bert")


@pytest.mark.parametrize("variant", ["plain", "own_biases", "four_factors"])
def test_gradients_and_training_equal_pefts(variant, tmp_path):
    model = tiny_model("llama", attention_bias=True)
    assert_gradients_agree(model, peft.BOFTConfig(target_modules=QV, **VARIANTS[variant]), tmp_path)


def insert(**settings):
    """An insert in fp64 at a projection of 32 features, with random blocks and scales."""
    adapter = tiny_base(hidden_size=32).attach("x", BOFT(target_modules=("q_proj",), **settings))
    randomise(adapter)
    return adapter.inserts[0][1].double()


def test_by_hand():
    turned = insert(boft_block_size=2)
    with torch.no_grad():
        turned.blocks.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # Q = ((0, 1/2), (−1/2, 0))
        turned.scale.fill_(2.0)
    turned.site.module.weight.data = torch.eye(32, dtype=torch.float64)
    x = torch.tensor([1.0, 0.0] * 16, dtype=torch.float64)
    assert_close(turned(x, x), torch.tensor([2 * 0.6, 2 * -0.8] * 16, dtype=torch.float64))


@pytest.mark.parametrize("factors", [1, 2, 4])
def test_the_merged_weight_is_exact_in_fp64(factors):
    turned = insert(boft_n_butterfly_factor=factors)
    W = torch.randn(32, 32, dtype=torch.float64)
    turned.site.module.weight.data = W
    x = torch.randn(5, 32, dtype=torch.float64)
    merged, _ = turned.merge(W, None)
    wanted = turned(x, F.linear(x, W))
    assert ((F.linear(x, merged) - wanted).norm() / wanted.norm()) < 1e-12
    angles = [(m / m.norm(dim=1, keepdim=True)) @ (m / m.norm(dim=1, keepdim=True)).T for m in (W, merged)]
    assert_close(
        angles[1].abs(), angles[0].abs()
    )  # a rotation keeps angles; a negative scale would flip them


@pytest.mark.parametrize(("factors", "reached"), [(1, 4), (2, 8), (3, 16), (4, 32)])
def test_each_further_factor_doubles_what_turns_together(factors, reached):
    turned = insert(boft_n_butterfly_factor=factors)
    with torch.no_grad():
        turned.scale.fill_(1.0)
    M, _ = turned.merge(torch.eye(32, dtype=torch.float64), None)
    assert (M != 0).sum(1).tolist() == [reached] * 32


def test_packed_weights_are_turned_as_their_dequantised_values_are():
    packed, plain = (
        Base(quantise_model(tiny_model("gpt2"), "nf4")),
        tiny_base("gpt2"),
    )  # stored transposed, with biases
    for name, module in packed.model.named_modules():
        if hasattr(module, "codes"):
            plain.model.get_submodule(name).weight.data = module.weight.detach().T.clone()
    answers = []
    for base in (packed, plain):
        randomise(base.attach("x", BOFT(boft_n_butterfly_factor=2)))
        with base.using("x"):
            answers.append(base(**inputs("gpt2")).logits)
    assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)


def test_dropout_leaves_whole_blocks_unturned_and_only_in_training():
    turned = insert(boft_dropout=0.25)
    with torch.no_grad():
        turned.scale.fill_(1.0)
    x, y = torch.eye(32, dtype=torch.float64), torch.zeros(32, 32, dtype=torch.float64)
    turned.site.module.weight.data = x
    assert (turned(x, y).abs().sum(1) == 0).sum() == 0
    assert (turned.train()(x, y).abs().sum(1) == 0).sum() == 2 * 4  # a quarter of 8 blocks of 4


def test_the_scale_does_not_decay():
    adapter = tiny_base().attach("x", BOFT())
    groups = adapter.param_groups(1e-3)
    assert {p.ndim: group.get("weight_decay") for group in groups for p in group["params"]} == {
        4: None,
        1: 0.0,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"boft_block_num": 4},
        {"boft_n_butterfly_factor": 0},
        {"boft_dropout": 1.0},
        {"boft_block_size": 5},
        {"boft_block_size": 0, "boft_block_num": 5},
        {"boft_block_size": 32, "boft_n_butterfly_factor": 3},
        {"boft_block_size": 1, "boft_n_butterfly_factor": 2},
    ],
)
def test_settings_that_fit_no_butterfly_are_refused(settings):
    with pytest.raises(UsageError):
        tiny_base().attach("x", BOFT(**settings))
