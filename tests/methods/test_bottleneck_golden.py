"""Added modules: a Kronecker product by hand, and how near a newborn is to the base."""

import pytest
import torch
from torch.testing import assert_close

from graft.methods.adamix import AdaMix
from graft.methods.compacter import LPHM, Compacter, Rule
from graft.methods.houlsby import Houlsby
from graft.methods.krona_b import KronAB
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from models import inputs, tiny_base

A, B = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1], [1, 0]])
PRODUCT = torch.tensor([[0.0, 1, 0, 2], [1, 0, 2, 0], [0, 3, 0, 4], [3, 0, 4, 0]])
NEUTRAL = [
    Houlsby(),
    Pfeiffer(),
    Pfeiffer(mh_adapter=True),
    Parallel(),
    Parallel(scaling="learned"),
    KronAB(),
    AdaMix(),
]


def test_the_kronecker_product_of_krona_b():
    base = tiny_base("llama", hidden_size=4, num_attention_heads=1, num_key_value_heads=1)
    insert = base.attach("x", KronAB(scale=1.0)).inserts[0][1]
    with torch.no_grad():
        insert.A.copy_(A)
        insert.B.copy_(B)
    assert torch.equal(
        insert.delta(torch.eye(4)).T, PRODUCT
    )  # column by column, as it multiplies from the left


def test_the_kronecker_product_of_compacter():
    layer = LPHM(Rule(2, 1.0), 4, 4, 2)
    with torch.no_grad():
        layer._rule[0].A.copy_(torch.stack([A, torch.zeros(2, 2)]))
        layer.W_left.copy_(torch.eye(2).expand(2, 2, 2))
        layer.W_right.copy_(B.expand(2, 2, 2))
    assert torch.equal(layer(torch.eye(4)), PRODUCT)  # row by row, as it multiplies from the right


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_newborn_answers_as_the_base_bit_for_bit(family):
    base = tiny_base(family)
    before = base(**inputs(family)).logits
    for method in NEUTRAL:
        base.attach("x", method)
        with base.using("x"):
            assert torch.equal(base(**inputs(family)).logits, before), method
        base.detach("x")


def test_a_newborn_compacter_answers_nearly_as_the_base():
    base = tiny_base()
    base.attach("x", Compacter())
    with base.using("x"):
        assert_close(
            base(**inputs("llama")).logits,
            base(**inputs("llama"), adapters=[None] * 3).logits,
            atol=1e-3,
            rtol=0,
        )
