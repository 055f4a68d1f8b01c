"""Extraction: a merged LoRA comes back, a fully tuned model comes back as near as its rank allows."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers.modeling_utils import PreTrainedModel

import graft
from graft.base.base import Base
from graft.combine.extract import difference, extract
from graft.combine.low_rank import SPARE, truncated
from graft.errors import AdapterError, GraftError, ModelError, UsageError
from graft.methods.lora import LoRA
from graft.quant import quantise_model
from models import inputs, randomise, tiny_base, tiny_model


def logits(model, family="llama", **routing):
    with torch.no_grad():
        batch = inputs(family)
        return model(batch.pop("ids"), **batch, **routing).logits


def tuned(family="llama", only=lambda name: True, scale=0.05, **settings):
    """The model of `tiny_base` with every parameter of a kind moved a little."""
    model = tiny_model(family, **settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if only(name):
                p.add_(torch.randn(p.shape, generator=generator) * scale)
    return model


def is_matrix(name):
    return "layers" in name and "norm" not in name


@pytest.mark.parametrize("source", ["folder", "memory"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_a_merged_lora_comes_back(family, source, tmp_path):
    base, other = tiny_base(family), tiny_base(family)
    randomise(other.attach("known", LoRA(r=4, target_modules="all-linear")))
    other.merge("known")
    wanted = logits(other, family)
    if source == "folder":
        other.model.save_pretrained(tmp_path)
    found = difference(base, tmp_path if source == "folder" else other.model, r=4)
    found.attach("again")
    assert_close(logits(base, family, adapters=["again"] * 3), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - logits(base, family)).abs().max() > 1e-2
    assert min(layer.kept for layer in found.layers.values()) > 0.9999
    assert not found.rest and not found.foreign


def test_the_error_falls_with_the_rank_and_kept_says_by_how_much():
    base, model = tiny_base(), tuned(only=is_matrix, scale=0.02)
    wanted, errors = logits(model), []
    for r in (1, 8, 24, 64):
        found = difference(base, model, r=r)
        found.attach(f"r{r}")
        errors.append(float((logits(base, adapters=[f"r{r}"] * 3) - wanted).abs().mean()))
        for name, layer in found.layers.items():
            change = model.get_submodule(name).weight - base.model.get_submodule(name).weight
            spectrum = torch.linalg.svdvals(change).square()
            assert layer.kept == pytest.approx(float(spectrum[:r].sum() / spectrum.sum()), rel=1e-4)
            assert layer.norm == pytest.approx(float(change.norm()), rel=1e-4)
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < 1e-4, errors


def test_energy_takes_the_smallest_rank_that_keeps_it():
    base, model = tiny_base(), tuned(only=is_matrix)
    found = difference(base, model, energy=0.9)
    for name, layer in found.layers.items():
        change = model.get_submodule(name).weight - base.model.get_submodule(name).weight
        share = torch.linalg.svdvals(change).square().cumsum(0) / change.square().sum()
        assert layer.kept >= 0.9 and (len(layer.A) == 1 or float(share[len(layer.A) - 2]) < 0.9)
    assert len({len(layer.A) for layer in found.layers.values()}) > 1  # each layer has a rank of its own
    capped = difference(base, model, energy=0.9, r=3)
    assert {len(layer.A) for layer in capped.layers.values()} == {3}
    assert 0 < capped.kept < found.kept < 1


def test_an_extracted_adapter_loads_in_peft(tmp_path):
    base, model = tiny_base(), tuned(attention_bias=True)
    base = Base(tiny_model("llama", attention_bias=True), name="tiny")
    extract(base, model, "x", energy=0.9, rest="keep").save(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model("llama", attention_bias=True), tmp_path).eval()
    assert_close(logits(theirs), logits(base, adapters=["x"] * 3), atol=1e-5, rtol=1e-4)


def test_what_a_lora_cannot_hold_is_named():
    base, model = tiny_base(), tuned(scale=0.05)
    with pytest.warns(UserWarning, match=r"model.embed_tokens.weight.*rest='keep'"):
        extract(base, model, "x", r=64)
    found = difference(base, model, r=64)
    assert {"model.norm.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"} <= set(found.rest)
    assert not any("proj" in name for name in found.rest)


@pytest.mark.parametrize(
    ("family", "tie"), [("llama", False), ("llama", True), ("gpt2", True), ("bert", True)]
)
def test_the_rest_is_kept_in_full_when_asked_for(family, tie, tmp_path):
    base = Base(tiny_model(family, tie_word_embeddings=tie), name="tiny")
    tables = ("wpe", "position", "token_type")  # no sites
    model = tuned(family, lambda name: not any(table in name for table in tables), tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    extract(base, tmp_path, "x", r=64, rest="keep")
    answer = logits(base, family, adapters=["x"] * 3)
    assert_close(answer, logits(model, family), atol=2e-4, rtol=1e-4)
    again = Base(tiny_model(family, tie_word_embeddings=tie), name="tiny")
    again.load_adapter(base.adapters["x"].save(tmp_path / "x"), "x")
    assert torch.equal(logits(again, family, adapters=["x"] * 3), answer)


def test_a_position_table_is_named_and_has_no_place(tmp_path):
    with pytest.raises(AdapterError, match=r"wpe.weight"):
        extract(tiny_base("gpt2"), tuned("gpt2"), "x", rest="keep")


def test_layers_that_did_not_change_get_no_factors():
    model = tuned(only=lambda name: "layers.1" in name and "proj" in name)
    found = difference(tiny_base(), model)
    assert found.layers and all("layers.1" in site for site in found.layers)


def test_chosen_layers_only_and_a_bias_of_an_unchanged_layer():
    base, model = (
        tiny_base("gpt2"),
        tuned("gpt2", lambda name: "c_attn.weight" in name or "c_proj.bias" in name),
    )
    found = difference(base, model, target_modules=("c_attn",), r=64)
    assert {site.rpartition(".")[2] for site in found.layers} == {"c_attn"} and len(found.rest) == 4
    found.attach("x", "keep")
    assert_close(logits(base, "gpt2", adapters=["x"] * 3), logits(model, "gpt2"), atol=1e-4, rtol=1e-4)


def test_embeddings_are_low_rank_when_targeted():
    base, model = tiny_base(), tuned(only=lambda name: "embed_tokens" in name or "q_proj" in name)
    extract(base, model, "x", r=64, target_modules=("embed_tokens", "q_proj"))
    assert_close(logits(base, adapters=["x"] * 3), logits(model), atol=1e-4, rtol=1e-4)


def test_a_file_without_the_prefix_of_the_backbone_and_with_more_tensors_is_understood(tmp_path):
    model = tuned("gpt2", lambda name: "attn.c_attn.weight" in name)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {key.removeprefix("transformer."): t for key, t in load_file(file).items()}
    save_file(
        {**tensors, "h.0.attn.bias": torch.ones(1), "score.weight": torch.ones(2, 64)}, file, {"format": "pt"}
    )
    found = difference(tiny_base("gpt2"), tmp_path)
    assert found.layers and not found.rest and found.foreign == ["score.weight"]


def test_the_tuned_folder_is_read_tensor_by_tensor(tmp_path, monkeypatch):
    tuned(only=is_matrix).save_pretrained(tmp_path)
    base = tiny_base()
    for name in ("__init__", "from_pretrained"):
        monkeypatch.setattr(PreTrainedModel, name, lambda *_, **__: pytest.fail("a second model was built"))
    assert difference(base, tmp_path).layers


@pytest.mark.parametrize("shape", [{"vocab_size": 100}, {"intermediate_size": 96}, {"num_hidden_layers": 1}])
def test_models_of_other_shapes_are_refused(shape):
    with pytest.raises(AdapterError, match=r"the models differ in \d+ tensors: model"):
        extract(tiny_base(), tiny_model("llama", **shape), "x")


def test_what_cannot_be_meant_is_named(tmp_path):
    base, model = tiny_base(), tuned(only=is_matrix)
    for settings in ({"r": 0}, {"energy": 0.0}, {"energy": 1.5}, {"rest": "drop"}):
        with pytest.raises(UsageError):
            extract(base, model, "x", **settings)
    with pytest.raises(AdapterError, match="the two models are equal"):
        extract(base, tiny_model("llama"), "x")
    with pytest.raises(AdapterError, match=r"norm.weight"):
        extract(base, tuned(only=lambda name: "norm" in name), "x")
    with pytest.raises(GraftError, match="no folder"):
        extract(base, tmp_path / "none", "x")
    with pytest.raises(AdapterError, match="quantised base"):
        extract(Base(quantise_model(tiny_model("llama"), "nf4")), model, "x")
    broken = copy.deepcopy(model)
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj"):
        extract(base, broken, "x")
    assert not base.adapters


def test_a_large_matrix_is_shortened_by_chance_and_still_nearly_as_well_as_can_be(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 300, generator=generator))[0] for n in (400, 300))
    matrix = (U * torch.arange(1, 301) ** -0.7) @ V.T  # a slowly falling spectrum
    A, B, kept = truncated(matrix, 8)
    monkeypatch.setattr("graft.combine.low_rank.LARGE", 256)
    assert (8 + SPARE) * 4 < 300
    state = torch.get_rng_state()
    fast_A, fast_B, fast_kept = truncated(matrix, 8)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(truncated(matrix, 8)[0], fast_A)
    assert kept - 1e-3 < fast_kept <= kept + 1e-6
    assert_close((matrix - fast_B @ fast_A).norm(), (matrix - B @ A).norm(), rtol=1e-3, atol=0)


def test_the_public_name_is_the_function():
    assert graft.extract is extract
