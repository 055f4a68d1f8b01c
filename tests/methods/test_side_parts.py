"""The parts of the side networks' trained parameters on published shapes; the sums are in test_counts."""

from published import attached, bert_base, llama_2_7b, t5_base

from graft.layers.delta import Delta
from graft.methods.ladder import Foot, Ladder, Rung, Side
from graft.methods.lets import LeTS, Readout

KEPT = (1, 2, 3, 5, 6, 7, 9, 10, 11)  # side blocks of the official T5-base: every fourth is dropped


def numbers(adapter, kind):
    return sum(
        p.numel() for _, insert in adapter.inserts if type(insert) is kind for p in insert.parameters()
    )


def test_the_parts_of_a_ladder_beside_llama():
    """The figures of the specification have no biases, gates and last norm: 101.2 M + 69.2 M + 2.1 M."""
    adapter = attached(llama_2_7b, Ladder())
    d, d_s, f_s, L = 4096, 4096 // 8, 11008 // 8, 32
    blocks, up = L * (4 * d_s**2 + 3 * d_s * f_s + 2 * d_s), d_s * d
    assert (blocks, (L + 1) * d * d_s, up) == (101_220_352, 69_206_016, 2_097_152)
    assert numbers(adapter, Foot) + numbers(adapter, Rung) == (L + 1) * (d * d_s + d_s)
    assert numbers(adapter, Side) == blocks + d_s + up + d + L


def test_the_parts_of_a_ladder_beside_t5():
    """Two stacks of nine blocks, each with its table of 32 distances, and one way up."""
    adapter = attached(t5_base, Ladder(layers=KEPT))
    d, d_s, f_s, heads = 768, 96, 384, 12
    encoder = 9 * (4 * d_s**2 + 2 * d_s * f_s + 2 * d_s)
    decoder = 9 * (8 * d_s**2 + 2 * d_s * f_s + 3 * d_s)
    assert numbers(adapter, Foot) + numbers(adapter, Rung) == 2 * 10 * (d * d_s + d_s)
    assert numbers(adapter, Side) == encoder + decoder + 2 * (32 * heads + d_s + 9) + d_s * d + d


def test_the_parts_of_lets():
    adapter = attached(bert_base, LeTS())
    d, h = 768, 192
    lstm = 2 * (4 * h * (d + h) + 2 * 4 * h)
    assert lstm == 1_477_632 == 5 * d**2 // 2 + 4 * d
    assert numbers(adapter, Readout) == lstm + 13 + 2 * 2 * h + 2
    assert numbers(adapter, Delta) == 2 * (4 * round(0.005 * d * d) + 2 * round(0.005 * d * 4 * d)) == 70_776
