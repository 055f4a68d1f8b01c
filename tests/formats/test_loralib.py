"""A loralib pickle becomes a PEFT folder in a child process; hostile ones are not run. Oracle: PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import RobertaConfig, RobertaForSequenceClassification

from graft.errors import AdapterError, ModelError, UsageError
from graft.formats import refuse_pickle
from graft.formats.loralib import convert, peft

REAL = Path(__file__).parents[3] / "shared/models/roberta-base-lora-mnli-adapter/roberta_base_lora_mnli.bin"
WIDTH, LAYERS, RANK = 16, 2, 4


def tiny():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=3,
    )
    return RobertaForSequenceClassification(config).eval()


@pytest.fixture
def legacy():
    """A state dict as loralib.lora_state_dict writes it for query and value, with the task's head."""
    torch.manual_seed(1)
    state = {}
    for layer in range(LAYERS):
        for name in ("query", "value"):
            stem = f"roberta.encoder.layer.{layer}.attention.self.{name}"
            state |= {f"{stem}.lora_A": torch.randn(RANK, WIDTH), f"{stem}.lora_B": torch.randn(WIDTH, RANK)}
    state |= {
        "classifier.dense.weight": torch.randn(WIDTH, WIDTH),
        "classifier.dense.bias": torch.randn(WIDTH),
    }
    return state | {
        "classifier.out_proj.weight": torch.randn(3, WIDTH),
        "classifier.out_proj.bias": torch.randn(3),
    }


def test_the_converted_folder_loads_in_peft_and_equals_the_merge_by_hand(legacy, tmp_path):
    torch.save(legacy, tmp_path / "mnli.bin")
    said = convert(tmp_path / "mnli.bin", tmp_path / "out", lora_alpha=8, base="roberta-tiny")
    assert "child process" in said and "query, value" in said
    ids = torch.randint(4, 50, (2, 9))
    merged = tiny()
    for layer, block in enumerate(merged.roberta.encoder.layer):
        for name in ("query", "value"):
            stem = f"roberta.encoder.layer.{layer}.attention.self.{name}"
            linear = getattr(block.attention.self, name)
            linear.weight.data += (8 / RANK) * legacy[f"{stem}.lora_B"] @ legacy[f"{stem}.lora_A"]
    merged.classifier.load_state_dict(
        {k[len("classifier.") :]: v for k, v in legacy.items() if k.startswith("class")}
    )
    loaded = PeftModel.from_pretrained(tiny(), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (canary,))

    torch.save({"a.lora_A": Hostile()}, tmp_path / "evil.bin")
    with pytest.raises(ModelError, match="not opened"):
        convert(tmp_path / "evil.bin", tmp_path / "out", lora_alpha=16)
    assert not canary.exists() and not (tmp_path / "out").exists()


def test_a_file_that_is_no_pickle_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"not a pickle")
    with pytest.raises(ModelError, match="not opened"):
        convert(tmp_path / "x.bin", tmp_path / "out", lora_alpha=16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s, k: s.update({k: torch.full_like(s[k], float("nan"))}), "not finite"),
        (lambda s, k: s.update({k: s[k][:2]}), "share no rank"),
        (lambda s, k: s.pop(k), "lora_A is missing"),
        (
            lambda s, k: s.update({k.replace("lora_A", "bias"): torch.zeros(WIDTH)}),
            "neither LoRA nor of a head",
        ),
    ],
)
def test_tensors_that_form_no_lora_are_named(legacy, change, reason):
    change(legacy, "roberta.encoder.layer.1.attention.self.value.lora_A")
    with pytest.raises(AdapterError, match=reason) as caught:
        peft(legacy, lora_alpha=16, base=None)
    assert "layer.1.attention.self.value" in str(caught.value)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    torch.save({}, tmp_path / "x.bin")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="force"):
        convert(tmp_path / "x.bin", tmp_path / "out", lora_alpha=16)


def test_other_doors_refuse_pickles_with_the_hint(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.raises(ModelError, match="graft convert"):
            refuse_pickle(path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    refuse_pickle(tmp_path)
    refuse_pickle("meta-llama/Llama-3.2-1B")


@pytest.mark.skipif(not REAL.exists(), reason="the official file is not beside the checkout")
def test_the_official_mnli_file_keeps_every_value(tmp_path):
    convert(REAL, tmp_path / "mnli", lora_alpha=16, base="roberta-base")
    tensors = load_file(tmp_path / "mnli" / "adapter_model.safetensors")
    lora = sum(t.numel() for key, t in tensors.items() if ".lora_" in key)
    config = json.loads((tmp_path / "mnli" / "adapter_config.json").read_text())
    assert (len(tensors), sum(t.numel() for t in tensors.values()), lora) == (
        52,
        887_811,
        294_912,
    )  # its README
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (8, 16, ["classifier"])
