"""Formulas of the bottlenecks' trained parameters on published shapes; figures are in test_counts."""

import pytest
from published import attached, bert_base, llama_2_7b, roberta_large, t5_base

from graft.layers.bottleneck import Bottleneck
from graft.methods.adamix import AdaMix
from graft.methods.compacter import Compacter
from graft.methods.houlsby import Houlsby
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer

NORMS = {bert_base: 38_400, t5_base: 47_616, llama_2_7b: 266_240}
WIDTHS = {bert_base: (12, 768), t5_base: (24, 768), roberta_large: (24, 1024), llama_2_7b: (32, 4096)}  # L, d


def count(make, method):
    return attached(make, method).count()


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
    places = {
        cross: sum(isinstance(insert, Bottleneck) for _, insert in seats) for cross, seats in found.items()
    }
    assert places == {False: 48, True: 60}


def test_one_of_adamix_experts_costs_no_more_than_the_host_when_saved():
    adapter = attached(bert_base, AdaMix(m=48))
    assert sum(tensor.numel() for tensor in adapter.file_state().values()) == 894_528
