"""Exact numbers of trained parameters of the bottleneck family on published shapes, and their published shares."""

import functools

import pytest
import torch

from graft.methods._bottleneck import Bottleneck
from graft.methods.adamix import AdaMix
from graft.methods.adapter_fusion import AdapterFusion
from graft.methods.compacter import Compacter
from graft.methods.houlsby import Houlsby
from graft.methods.krona_b import KronAB
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from shapes import bert_base, llama_2_7b, roberta_large, t5_base

TOTAL = {bert_base: 109_482_240, t5_base: 222_903_552, llama_2_7b: 6_738_415_616}
NORMS = {bert_base: 38_400, t5_base: 47_616, llama_2_7b: 266_240}
WIDTHS = {bert_base: (12, 768), t5_base: (24, 768), roberta_large: (24, 1024), llama_2_7b: (32, 4096)}  # L, d


once = functools.cache(lambda make: make())


def attached(make, method):
    """Without storage, as a plan has it; the base serves the next test."""
    base = once(make)
    with torch.device("meta"):
        base.attach("x", method)
    return base.detach("x")


def count(make, method):
    return attached(make, method).count()


@pytest.mark.parametrize("make", TOTAL)
def test_the_shapes_are_the_published_models(make):
    assert once(make).count() == TOTAL[make]


@pytest.mark.parametrize(
    ("make", "method", "wanted", "percent"),
    [
        (bert_base, Houlsby(m=64, train_norms=False), 2_379_264, 2.17),
        (bert_base, Pfeiffer(), 894_528, 0.82),
        (bert_base, Parallel(), 7_091_712, 6.48),
        (llama_2_7b, Houlsby(m=256, train_norms=False), 134_496_256, None),
        (llama_2_7b, Pfeiffer(m=256), 67_248_128, None),
        (llama_2_7b, Parallel(reduction_factor=16), 67_248_128, None),
        (t5_base, Houlsby(m=24), 1_855_104, 0.832),
        (t5_base, Pfeiffer(m=24, train_norms=True), 951_360, 0.427),
        (t5_base, Compacter(), 161_728, 0.0726),
        (t5_base, Compacter(mh_adapter=False), 104_704, 0.0470),
        (llama_2_7b, Compacter(m=256, train_norms=False), 835_648, None),
        (t5_base, KronAB(), 24 * 1_536, None),
        (t5_base, KronAB(residual=True, train_norms=True), 24 * 1_537 + 47_616, None),
        (llama_2_7b, AdaMix(m=16), 10_618_880, None),
        (bert_base, AdaMix(m=48).hosted(), 894_528, None),
        (roberta_large, AdaMix(m=16).hosted(), 811_392, None),
        (llama_2_7b, AdaMix(m=16).hosted(), 4_325_888, None),
        (bert_base, AdapterFusion(), 12 * (3 * 768**2 + 2 * 768), 19.4),
        (bert_base, AdapterFusion(value=False), 12 * (2 * 768**2 + 2 * 768), None),
        (llama_2_7b, AdapterFusion(), 1_610_612_736 + 32 * 2 * 4096, None),
    ],
)
def test_counts_and_shares_are_the_published_ones(make, method, wanted, percent):
    found = count(make, method)
    assert found == wanted
    if percent is not None:
        digits = len(str(percent).partition(".")[2])
        assert round(100 * found / TOTAL[make], digits) == percent


@pytest.mark.parametrize("make", WIDTHS)
@pytest.mark.parametrize("m", [8, 64])
def test_counts_follow_the_formulas(make, m):
    L, d = WIDTHS[make]
    one = 2 * d * m + m + d
    assert count(make, Pfeiffer(m=m)) == count(make, Parallel(m=m)) == L * one
    assert count(make, Houlsby(m=m, train_norms=False)) == 2 * L * one
    assert count(make, AdaMix(m=m, num_experts=3)) == L * (3 * (d * m + m) + m * d + d)
    assert count(make, Compacter(m=m, train_norms=False)) == 2 * L * (2 * (d + m) + m + d) + 4**3
    assert count(make, Pfeiffer(m=m, scaling="learned")) == L * (one + 1)
    assert count(make, Pfeiffer(m=m, scaling="channel", leave_out=(0, 1))) == (L - 2) * (one + d)


@pytest.mark.parametrize("make", NORMS)
def test_trained_norms_are_all_of_the_model_and_counted_beside(make):
    for method in (Houlsby, Compacter):
        assert count(make, method()) - count(make, method(train_norms=False)) == NORMS[make]


def test_cross_attention_has_one_only_where_asked():
    found = {cross: attached(t5_base, Houlsby(m=24, cross_adapter=cross)).inserts for cross in (False, True)}
    places = {cross: sum(isinstance(insert, Bottleneck) for _, insert in seats) for cross, seats in found.items()}
    assert places == {False: 48, True: 60}


def test_one_of_adamix_experts_costs_no_more_than_the_host_when_saved():
    adapter = attached(bert_base, AdaMix(m=48))
    assert sum(tensor.numel() for tensor in adapter.state().values()) == 894_528
