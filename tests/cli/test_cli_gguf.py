"""GGUF from the command line: written, verified, asked, scored; refused where llama.cpp has no such model."""

import json

import pytest
from test_cli import training
from tiny_folder import write_model, write_rows

from graft.cli import call
from graft.models.load import load
from models import tiny_model

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows, and a run of QA-LoRA on it in 4 bits."""
    folder = tmp_path_factory.mktemp("gguf")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    # The adapter is asked on the folder later, which is loaded in bf16.
    changes = "method.r=2 train.max_steps=2 train.batch_size=4 data.eval=0.25 --train.lr 1e-2"
    assert call(training(folder, "lora", changes)) == 0
    assert call(training(folder, "qa", changes.replace("method.r", "dtype=fp32 method=qalora method.r"))) == 0
    return folder


def types(path):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def exported(capsys, *words):
    assert call(["export", *map(str, words), "--lossy", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("next    ollama create NAME -f ")
    return json.loads(out)


def test_a_run_in_4_bits_becomes_a_file_in_4_bits(home, tmp_path, capsys):
    facts = exported(capsys, home / "qa", tmp_path / "out", "--to", "gguf")
    assert facts["files"] == [
        "Modelfile",
        "README.md",
        "certificate.json",
        "merge_report.json",
        "model-Q4_1.gguf",
    ]
    assert facts["certificate"]["into"] == "packed" and facts["certificate"]["weights"]["max"] < 1e-3
    found = types(tmp_path / "out" / "model-Q4_1.gguf")
    assert {kind for name, kind in found.items() if "blk" in name and "norm" not in name} == {"Q4_1"}
    assert call(["verify", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "differs" not in out and "not checked" not in out
    file = err.splitlines()[-1].removeprefix("next    graft chat ")
    assert call(["chat", file, "--prompt", "Day 1.", "--raw", "--max-new-tokens", "3"]) == 0
    assert call(["eval", file, "--data", str(home / "rows.jsonl"), "--limit", "2", "--json"]) == 0
    assert call(["chat", str(tmp_path / "out"), "--prompt", "Day 1."]) == 1
    assert f"did you mean {file}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"), [([], "Q8_0"), (["--type", "q4_0"], "Q4_0"), (["--type", "f16"], "F16")]
)
def test_a_run_in_16_bits_takes_the_type_that_is_asked_for(words, kind, home, tmp_path, capsys):
    exported(capsys, home / "lora", tmp_path / "out", "--to", "gguf", *words)
    assert types(tmp_path / "out" / f"model-{kind}.gguf")["blk.0.ffn_up.weight"] == kind


def test_a_lora_is_a_file_of_its_own(home, tmp_path, capsys):
    facts = exported(capsys, home / "lora", tmp_path / "out", "--to", "gguf-lora")
    assert "lora-lora.gguf" in facts["files"] and facts["certificate"]["logits"]["effect"] > 0
    assert call(["verify", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "differs" not in out and err.splitlines()[-1].endswith(
        f"--adapter {tmp_path / 'out' / 'lora-lora.gguf'}"
    )
    words = ["--prompt", "Day 1.", "--raw", "--max-new-tokens", "3"]
    assert call(["chat", str(home / "lora"), *words]) == 0
    wanted = capsys.readouterr().out
    assert (
        call(["chat", str(home / "model"), "--adapter", str(tmp_path / "out" / "lora-lora.gguf"), *words])
        == 0
    )
    assert capsys.readouterr().out == wanted
    assert (
        call(["export", str(home / "lora"), str(tmp_path / "again"), "--to", "gguf-lora", "--type", "q8_0"])
        == 2
    )
    assert "leave type out" in capsys.readouterr().err


def test_a_file_is_a_base_for_training_in_its_own_blocks(home, tmp_path, capsys):
    exported(capsys, home / "model", tmp_path / "base", "--to", "gguf", "--type", "q4_1")
    file = tmp_path / "base" / "model-Q4_1.gguf"
    words = training(
        home, "on_file", "method=qalora method.r=2 train.max_steps=2 data.eval=null --train.lr 1e-2"
    )
    words[words.index("--model") + 1] = str(file)
    words[words.index("--output") + 1] = str(tmp_path / "run")
    assert call(words) == 0
    facts = exported(capsys, tmp_path / "run", tmp_path / "out", "--to", "gguf")
    assert facts["certificate"]["into"] == "packed"
    before, after = (load(one, dtype="fp32") for one in (file, next((tmp_path / "out").glob("*.gguf"))))
    for name, layer in before.model.named_modules():
        if hasattr(layer, "codes"):
            other = after.model.get_submodule(name)
            assert (layer.codes == other.codes).all() and (layer.scale == other.scale).all()
    assert call(["verify", str(tmp_path / "out")]) == 0


def test_models_and_adapters_that_llama_cpp_has_not_are_refused(home, tmp_path, capsys):
    tiny_model("gpt2", vocab_size=300).save_pretrained(tmp_path / "gpt2")
    load(home / "model").tokenizer.save_pretrained(tmp_path / "gpt2")
    assert call(["export", str(tmp_path / "gpt2"), str(tmp_path / "out"), "--to", "gguf"]) == 2
    assert "a gpt2 model as GGUF" in capsys.readouterr().err
    dora = training(home, "dora", "method.use_dora=true train.max_steps=1 data.eval=null")
    assert call(dora) == 0
    assert call(["export", str(home / "dora"), str(tmp_path / "out"), "--to", "gguf-lora"]) == 2
    assert "merge it with to='gguf'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(40))
    assert call(["eval", str(tmp_path / "damaged.gguf"), "--data", str(home / "rows.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err
