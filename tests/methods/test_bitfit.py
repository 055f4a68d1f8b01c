"""BitFit: which biases are trained, and where they end up. Oracles: a model trained itself, arithmetic."""

import pytest
import torch
from published import bert_base, llama_2_7b
from safetensors.torch import load_file
from tiny_folder import write_model, write_rows
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from graft.base.base import Base
from graft.errors import MergeError, SiteError
from graft.methods.bitfit import BitFit
from graft.models.load import load
from graft.quant import quantise_model
from graft.runs.run import train
from graft.shipping.export import export
from graft.training.observer import Observer
from models import inputs, randomise, tiny_base, tiny_model


def test_counts_of_the_paper():
    bert = bert_base().attach("x", BitFit())
    # 12 blocks: q, k, v, o, fc2 and two norms of 768, fc1 of 3072; the norm after the embeddings, the pooler
    assert bert.count() == 12 * (7 * 768 + 3072) + 2 * 768 == 102_912
    half = bert_base().attach("x", BitFit(target_modules=("query", "intermediate.dense")))
    assert half.count() == 12 * (768 + 3072)
    assert llama_2_7b().attach("x", BitFit()).count() == 32 * (5 * 4096 + 2 * 11008) == 1_359_872


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "phi"])
def test_ten_steps_equal_training_the_biases_of_the_model_itself(family):
    base, batch = tiny_base(family), inputs(family)
    adapter = base.attach("x", BitFit())
    model = tiny_model(family).requires_grad_(False)
    own = {
        f"{site.name}.bias": model.get_submodule(site.name).bias.requires_grad_(True)
        for site, _ in adapter.inserts
    }
    assert own.keys() == {  # every bias but the head's
        name
        for name, _ in model.named_parameters()
        if name.endswith(".bias") and not name.startswith(("lm_head", "cls.predictions.bias"))
    }
    optimizers = [torch.optim.SGD(ps, lr=0.1) for ps in (own.values(), adapter.parameters())]
    for _ in range(10):
        with base.using("x"):
            losses = [m(batch["ids"], labels=batch["ids"]).loss for m in (model, base)]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    for key, tensor in adapter.file_state().items():
        assert_close(tensor, own[key.removeprefix("base_model.model.")].detach(), atol=1e-5, rtol=1e-4)


def test_only_biases_that_exist_are_trained_where_some_do():
    adapter = tiny_base("qwen2").attach("x", BitFit())
    assert {site.name.split(".")[-1] for site, _ in adapter.inserts} == {"q_proj", "k_proj", "v_proj"}
    assert adapter.notices() == []


def test_a_model_without_biases_gets_some_and_it_is_said():
    adapter = tiny_base().attach("x", BitFit())
    assert {site.kind for site, _ in adapter.inserts} == {"linear"}
    assert all(torch.equal(p, torch.zeros_like(p)) for p in adapter.parameters())
    assert adapter.notices() == ["no target has a bias: 14 linears get one that starts at zero"]


def test_a_run_says_it_before_the_first_step(tmp_path):
    class Heard(Observer):
        def __init__(self):
            self.said = []

        def note(self, text):
            self.said.append(text)

        def step(self, record):
            self.said.append("step")

    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")
    base, heard = load(tmp_path / "model", dtype="fp32"), Heard()
    adapter = base.attach("x", BitFit())
    settings = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2, "lr": 1e-3}
    train(base, adapter, tmp_path / "rows.jsonl", output=str(tmp_path / "run"), observer=heard, **settings)
    assert heard.said.index(adapter.notices()[0]) < heard.said.index("step")


def test_norms_that_have_no_bias_and_take_none_are_refused():
    with pytest.raises(SiteError, match="norms without a bias"):
        tiny_base().attach("x", BitFit(target_modules=("norm",)))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_saved_is_the_bias_itself_and_loads_bit_for_bit(family, tmp_path):
    base, again, batch = tiny_base(family), tiny_base(family), inputs(family)
    adapter = base.attach("x", BitFit())
    randomise(adapter)
    adapter.save(tmp_path)
    again.load_adapter(tmp_path, "x")
    with base.using("x"), again.using("x"):
        assert torch.equal(again(**batch).logits, base(**batch).logits)
    base.merge("x")
    model = dict(base.model.named_parameters())
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        assert_close(tensor, model[key.removeprefix("base_model.model.")].data, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_added_biases_are_merged_and_written_for_transformers(packed, tmp_path):
    model = quantise_model(tiny_model("llama"), "nf4") if packed else tiny_model("llama")
    base, ids = Base(model), inputs("llama")["ids"]
    before = base(ids).logits
    randomise(base.attach("x", BitFit(target_modules=("q_proj", "down_proj"))))
    with base.using("x"):
        attached = base(ids).logits
    assert (attached - before).abs().max() > 1e-2
    folder = export(base, tmp_path / "out", adapter="x")
    plain, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(plain.eval()(ids).logits, attached, atol=1e-4, rtol=1e-4)
    assert torch.equal(base(ids).logits, before)


def test_biases_that_the_class_has_no_place_for_are_not_written(tmp_path):
    base = tiny_base("mistral")
    randomise(base.attach("x", BitFit()))
    with pytest.raises(MergeError, match=r"bias was added by an adapter \(14 tensors were\)"):
        export(base, tmp_path / "out", adapter="x")
    assert not (tmp_path / "out").exists()
