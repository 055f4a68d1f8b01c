"""Bottleneck adapters against the equations of their papers, written into the blocks by hand."""

import pytest
import torch
from block_oracle import rewired
from mixtures import MIXTURES
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.models.bart.configuration_bart import BartConfig
from transformers.models.bart.modeling_bart import BartForConditionalGeneration

import graft
from graft.base.base import Base
from graft.errors import SiteError, UsageError
from graft.layers.bottleneck import Bottleneck
from graft.methods.houlsby import Houlsby
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from models import CONFIGS, ENCODERS, inputs, randomise, tiny_base, tiny_model

ALL_KINDS = {"mh_adapter": True, "cross_adapter": True, "output_adapter": True}
PHI = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu, "leakyrelu": F.leaky_relu, "tanh": torch.tanh}


def bottlenecks(adapter):
    """[Δ] in the order of blocks and sublayers, written out."""
    phi = PHI[adapter.methods[0].non_linearity]

    def written(insert):
        down, up = insert.down, insert.up
        return lambda u: insert.scaling * (phi(u @ down.weight.T + down.bias) @ up.weight.T + up.bias)

    return [written(insert) for _, insert in adapter.inserts if isinstance(insert, Bottleneck)]


def behind(delta):
    return lambda h, r, norm: norm(h + delta(h) + r)


def twice_normed(delta):
    return lambda h, r, norm: norm(delta(norm(h + r)) + h + r)


def places(family, kinds=("attention", "cross", "mlp")):
    """(number of the block, kind) in the library's order."""
    if family == "t5":
        found = [
            (n, kind) for n in range(4) for kind in ("attention", "cross", "mlp") if n > 1 or kind != "cross"
        ]
    else:
        found = [(n, kind) for n in range(2) for kind in ("attention", "mlp")]
    return [place for place in found if place[1] in kinds]


def assert_equals_the_rewired(family, method, form, kinds=("attention", "cross", "mlp")):
    """Ours equals the blocks with `form(Δ)` written in, and is not what the base answers."""
    model = tiny_model(family)
    base = Base(model)
    adapter = base.attach("x", method)
    randomise(adapter)
    keywords = inputs(family)
    with base.using("x"), torch.no_grad():
        ours = base(**keywords).logits
    before = base(**keywords).logits
    deltas = bottlenecks(adapter)
    wanted = places(family, kinds)
    assert len(deltas) == len(wanted)
    ends = {place: form(delta) for place, delta in zip(wanted, deltas, strict=True)}
    ids = keywords.pop("ids")
    theirs = rewired(model, ends)(input_ids=ids, **keywords).logits
    assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "qwen2", "t5"])
@pytest.mark.parametrize("settings", [{}, {"non_linearity": "swish", "scaling": "channel", "m": 3}])
def test_houlsby_adds_before_the_residual_of_each_sublayer(family, settings):
    assert_equals_the_rewired(family, Houlsby(**ALL_KINDS, train_norms=False, **settings), behind)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pfeiffer_norms_twice_on_post_norm_models(family):
    assert_equals_the_rewired(family, Pfeiffer(reduction_factor=8), twice_normed, ["mlp"])
    assert_equals_the_rewired(family, Pfeiffer(reduction_factor=8, mh_adapter=True), twice_normed)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_pfeiffer_on_pre_norm_models_reads_the_output_or_with_original_ln_before_the_sum(family):
    assert_equals_the_rewired(family, Pfeiffer(scaling=2.0), behind, ["mlp"])
    assert_equals_the_rewired(
        family, Pfeiffer(original_ln_before=True, non_linearity="leakyrelu"), twice_normed, ["mlp"]
    )


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("scaling", [4.0, "learned"])
def test_parallel_reads_what_the_feedforward_network_reads(family, scaling):
    model = tiny_model(family)
    base = Base(model)
    adapter = base.attach("x", Parallel(scaling=scaling))
    randomise(adapter)
    with base.using("x"), torch.no_grad():
        ours = base(**inputs(family)).logits
    feedforwards = [
        module for module in model.modules() if type(module).__name__ in ("LlamaMLP", "T5DenseActDense")
    ]
    entered = []
    if family == "bert":  # its network is two modules
        feedforwards = [layer.output.dense for layer in model.bert.encoder.layer]
        for layer in model.bert.encoder.layer:
            layer.intermediate.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    assert len(feedforwards) == len(adapter.inserts)
    for network, delta in zip(feedforwards, bottlenecks(adapter), strict=True):
        hook = lambda module, args, y, d=delta: y + d(entered.pop() if entered else args[0])
        network.register_forward_hook(hook)
    assert_close(ours, base(**inputs(family)).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_only_post_norm_families_have_it_at_a_norm(family):
    kinds = {site.kind for site, _ in tiny_base(family).attach("x", Pfeiffer()).inserts}
    assert kinds == ({"norm"} if family in ENCODERS else {"mlp"})


def test_bart_is_post_norm_in_both_stacks():
    config = BartConfig(
        vocab_size=64, d_model=32, max_position_embeddings=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    adapter = Base(BartForConditionalGeneration(config)).attach("x", Pfeiffer(**ALL_KINDS))
    names = [site.name.removeprefix("model.") for site, _ in adapter.inserts]
    assert names == [
        "encoder.layers.0.self_attn_layer_norm", "encoder.layers.0.final_layer_norm",
        "decoder.layers.0.self_attn_layer_norm", "decoder.layers.0.encoder_attn_layer_norm",
        "decoder.layers.0.final_layer_norm",
    ]  # fmt: skip


def test_houlsby_trains_every_norm_and_pfeiffer_none():
    for family, norms in (("llama", 5), ("bert", 2 + 4), ("t5", 4 + 6 + 2)):
        trained = [
            s for s, i in tiny_base(family).attach("x", Houlsby()).inserts if not isinstance(i, Bottleneck)
        ]
        assert len(trained) == len({s.name for s in trained}) == norms and {s.kind for s in trained} == {
            "norm"
        }
        assert all(isinstance(i, Bottleneck) for _, i in tiny_base(family).attach("x", Pfeiffer()).inserts)


def test_left_out_blocks_have_none_and_others_their_own_width():
    method = Houlsby(leave_out=(0, 3), reduction_factor={"1": 8, "default": 4}, train_norms=False)
    adapter = tiny_base("t5").attach("x", method)
    widths = {(site.name[:7], site.layer): len(insert.down.weight) for site, insert in adapter.inserts}
    assert widths == {("encoder", 1): 8, ("decoder", 0): 16}  # the third block of four is the decoder's first


@pytest.mark.parametrize(
    ("init_weights", "down", "up"),
    [("mam_adapter", 1 / 64**0.5 / 3**0.5, 0), ("bert", 0.02, 0.02), ("houlsby", 0.0088, 0.0088)],
)
def test_the_starts_of_the_library(init_weights, down, up):
    torch.manual_seed(0)
    adapter = tiny_base().attach("x", Parallel(init_weights=init_weights, reduction_factor=0.5))
    for _, insert in adapter.inserts:
        assert abs(insert.down.weight.std() - down) < down / 20
        assert abs(insert.up.weight.std() - up) <= up / 20 and not insert.up.bias.any()
        assert (
            init_weights != "houlsby" or 0.0195 < insert.up.weight.abs().max() <= 0.02
        )  # cut at two deviations


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"non_linearity": "rellu"}, "relu"),
        ({"scaling": "learnt"}, "learned"),
        ({"init_weights": "zeros"}, "mam_adapter"),
        ({"dropout": 1.0}, "dropout"),
        ({"original_ln_before": True}, "original_ln_before"),
    ],
)
def test_a_setting_that_means_nothing_is_named(settings, said):
    with pytest.raises(UsageError, match=said):
        Parallel(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"reduction_factor": 1e-9}, {"m": 0}, {"reduction_factor": 0}, {"reduction_factor": {"0": 4}}],
)
def test_a_width_that_no_bottleneck_has_is_refused(settings):
    with pytest.raises(UsageError):
        tiny_base().attach("x", Pfeiffer(**settings))


def test_places_that_a_model_does_not_have_are_named():
    with pytest.raises(SiteError, match="cross"):
        tiny_base().attach("x", Pfeiffer(output_adapter=False, cross_adapter=True))
    with pytest.raises(SiteError, match="original_ln_before"):
        tiny_base().attach("x", Pfeiffer(mh_adapter=True, original_ln_before=True))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])  # Qwen's ends in the gate of a shared expert
def test_a_feed_forward_network_of_experts_has_no_place_for_one(family):
    base = tiny_base(family, **MIXTURES[family])
    with pytest.raises(SiteError, match="a feed-forward network of experts is none"):
        base.attach("x", Pfeiffer())
    with pytest.warns(graft.Notice, match="output_adapter finds no mlp sublayer in 2 of 2 blocks"):
        adapter = base.attach("x", Houlsby())
    assert [s.kind for s, one in adapter.inserts if isinstance(one, Bottleneck)] == ["attention", "attention"]
