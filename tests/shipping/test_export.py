"""Merged folders load in transformers with equal logits, adapters in PEFT; lossy merges are refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from graft.base.base import Base
from graft.errors import AdapterError, MachineError, MergeError, UsageError
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.quant import quantise_model
from graft.shipping.export import export
from graft.shipping.hf import write_model
from models import inputs, randomise, tiny_base, tiny_model

AUTO = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}


def reloaded(folder, family="llama", **keywords):
    model, info = AUTO.get(family, AutoModelForCausalLM).from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False, **keywords
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval()


def logits(model, family="llama", **routing):
    keywords = inputs(family)
    with torch.no_grad():
        ids = keywords.pop("ids")
        return model(ids, **keywords, **routing)[0].float()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bert", "t5", "opt"])
def test_a_merged_folder_answers_in_transformers_as_the_adapter_did(family, tmp_path):
    base = tiny_base(family)
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")))
    before, adapted = logits(base, family), logits(base, family, adapters=["sql"] * 3)
    folder = export(base, tmp_path / "out", adapter="sql")
    torch.testing.assert_close(logits(reloaded(folder, family), family), adapted, atol=1e-4, rtol=1e-4)
    assert (adapted - before).abs().max() > 1e-2
    assert torch.equal(logits(base, family), before)  # the base is as it was
    assert torch.equal(logits(base, family, adapters=["sql"] * 3), adapted)


def test_a_base_that_is_merged_already_is_written_as_it_answers(tmp_path):
    base = tiny_base()
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")))
    base.merge("sql")
    expected = logits(base)
    export(base, tmp_path / "out", to="hf")
    torch.testing.assert_close(logits(reloaded(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(base), expected)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tie_is_written_broken_where_the_adapter_broke_it(target, tmp_path):
    base = Base(tiny_model("llama", tie_word_embeddings=True), name="tied")
    randomise(base.attach("sql", LoRA(r=4, target_modules=("q_proj", target))))
    adapted = logits(base, adapters=["sql"] * 3)
    export(base, tmp_path / "untied", adapter="sql")
    torch.testing.assert_close(logits(reloaded(tmp_path / "untied")), adapted, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "untied/config.json").read_text())["tie_word_embeddings"] is False


def test_a_tie_that_holds_is_written_once(tmp_path):
    base = Base(tiny_model("llama", tie_word_embeddings=True), name="tied")
    expected = logits(base)
    export(base, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")
    torch.testing.assert_close(logits(reloaded(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_packed_base_comes_out_in_16_bits_and_says_so(family, tmp_path):
    model = tiny_model(family).to(torch.bfloat16)
    quantise_model(model, "nf4")
    base = Base(model, name="packed")
    randomise(base.attach("sql", LoRA(r=4, target_modules=["q_proj"] if family == "llama" else ["c_attn"])))
    adapted = logits(base, family, adapters=["sql"] * 3)
    export(base, tmp_path / "out", adapter="sql")
    config = json.loads((tmp_path / "out/config.json").read_text())
    facts = json.loads((tmp_path / "out/merge_report.json").read_text())
    again = reloaded(tmp_path / "out", family)
    assert "quantization_config" not in config and again.dtype == torch.bfloat16
    assert facts["dequantised_layers"] == sum(1 for m in model.modules() if hasattr(m, "codes")) > 2
    assert "dequantised" in facts["note"]
    # bf16 rounds each merged weight once, which the unmerged sum did not
    assert (logits(again, family) - adapted).abs().mean() < 0.02 * adapted.abs().mean()


def test_full_training_merges_exactly(tmp_path):
    base = tiny_base("gpt2")
    randomise(base.attach("all", Full()), scale=0.05)
    adapted = logits(base, "gpt2", adapters=["all"] * 3)
    export(base, tmp_path / "out", adapter="all")
    torch.testing.assert_close(
        logits(reloaded(tmp_path / "out", "gpt2"), "gpt2"), adapted, atol=1e-5, rtol=1e-5
    )


def test_large_models_are_written_in_shards_with_an_index(tmp_path):
    base = tiny_base()
    (tmp_path / "out").mkdir()
    write_model(base, tmp_path / "out", shard="100KB")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    torch.testing.assert_close(logits(reloaded(tmp_path / "out")), logits(base), atol=1e-5, rtol=1e-5)


def test_tokenizer_and_the_template_of_training_travel_along(tmp_path):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", eos_token="w1", pad_token="w2"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w1 {% endfor %}"
    base = Base(tiny_model("llama"), tokenizer, "tiny")
    base.attach("sql", LoRA(r=2))
    for layout in ("hf", "peft"):
        again = AutoTokenizer.from_pretrained(
            export(base, tmp_path / layout, to=layout), trust_remote_code=False
        )
        assert again.chat_template == tokenizer.chat_template
        assert again("w5 w7")["input_ids"] == [5, 7]


def test_a_change_that_the_rounding_swallows_is_refused(tmp_path):
    base = Base(tiny_model("llama").to(torch.bfloat16), name="tiny")
    randomise(base.attach("weak", LoRA(r=4, target_modules="all-linear")), scale=1e-5)
    with pytest.raises(MergeError, match=r"survives the rounding to bfloat16 \(worst: model.layers"):
        export(base, tmp_path / "out", adapter="weak")
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())
    export(base, tmp_path / "out", adapter="weak", lossy=True)
    facts = json.loads((tmp_path / "out/merge_report.json").read_text())["adapters"][0]
    assert facts["kept"] < 0.1 and facts["logits"]["mean"] > 0


def test_the_report_measures_the_rounding_of_every_tensor(tmp_path):
    base = Base(tiny_model("llama").to(torch.bfloat16), name="tiny")
    adapter = base.attach("sql", LoRA(r=4, lora_alpha=4, target_modules=["q_proj"]))
    randomise(adapter)
    site, insert = adapter.inserts[0]
    weight = site.weight().float()
    change = (insert.B @ insert.A).detach()
    written = (weight + change).to(torch.bfloat16).float() - weight
    export(base, tmp_path / "out", adapter="sql")
    found = json.loads((tmp_path / "out/merge_report.json").read_text())["adapters"][0]
    measured = found["tensors"][site.name]
    assert measured["norm"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert measured["noise"] == pytest.approx(float((written - change).norm() / change.norm()), rel=1e-3)
    assert 0.99 < found["kept"] < 1.01


def test_the_peft_folder_loads_in_peft(tmp_path):
    base = tiny_base()
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")))
    adapted = logits(base, adapters=["sql"] * 3)
    folder = export(base, tmp_path / "sql", to="peft")
    model = PeftModel.from_pretrained(tiny_model("llama"), folder).eval()
    torch.testing.assert_close(logits(model), adapted, atol=5e-5, rtol=1e-5)
    assert "base_model: tiny-llama" in (folder / "README.md").read_text()


def test_an_existing_folder_stays_unless_force_is_given(tmp_path):
    base = tiny_base()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="force"):
        export(base, tmp_path / "out")
    export(base, tmp_path / "out", force=True)
    assert not (tmp_path / "out/mine.txt").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    base = tiny_base()
    monkeypatch.setattr(
        sys.modules["graft.shipping.layouts"],
        "write_model",
        lambda *_, **__: Path(tmp_path / "nowhere/x").write_text("x"),
    )
    with pytest.raises(MachineError, match="nowhere"):
        export(base, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_meant_is_named(tmp_path):
    base = tiny_base()
    with pytest.raises(UsageError, match="gguf"):
        export(base, tmp_path / "out", to="gguf")
    with pytest.raises(UsageError, match="attach"):
        export(base, tmp_path / "out", to="peft")
    base.attach("sql", LoRA(r=2))
    with pytest.raises(AdapterError, match="'sql'"):
        export(base, tmp_path / "out", adapter="slq")
    base.attach("head", TaskHead(num_labels=2, pool="mean"))
    with pytest.raises(MergeError, match="peft"):
        export(base, tmp_path / "out", adapter="head")
