import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from graft.core.anatomy import family, layer_of, sites
from models import CONFIGS, tiny_model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_projection_of_every_family_is_a_site(name):
    model = tiny_model(name)
    found = {site.name for site in sites(model) if site.kind in ("linear", "head")}
    assert found == {path for path, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_number_like_the_configuration_says(name):
    model = tiny_model(name)
    blocks = [site for site in sites(model) if site.kind == "block"]
    assert len(blocks) == (4 if name == "t5" else 2) and {site.layer for site in blocks} == {0, 1}


def test_position_and_segment_tables_are_no_embedding_sites():
    names = [site.name for site in sites(tiny_model("bert")) if site.kind == "embed"]
    assert names == ["bert.embeddings.word_embeddings"]


def test_a_site_knows_its_widths_also_where_the_weight_is_stored_transposed():
    fused = next(site for site in sites(tiny_model("gpt2")) if site.name.endswith("c_attn"))
    assert (fused.in_features, fused.out_features, tuple(fused.weight().shape)) == (64, 192, (192, 64))


def test_families_are_told_apart():
    assert [family(tiny_model(n)) for n in ("llama", "bert", "t5")] == ["causal", "masked", "seq2seq"]
    assert family(tiny_model("bert", bare=True)) == "encoder"


def test_the_layer_is_the_first_number_of_the_path():
    assert [layer_of(n) for n in ("decoder.block.1.layer.0.SelfAttention.q", "lm_head", "h.11.mlp")] == [
        1,
        None,
        11,
    ]
