"""Folders for vLLM: they answer under vLLM's rules and in PEFT as they were trained; the rest is refused."""

import json
import re
import shlex

import pytest
import torch
from peft import PeftModel
from tiny_folder import write_model
from transformers import AutoModelForCausalLM
from vllm_rules import MAX_RANKS, served

from graft.base.base import Base
from graft.cli import call
from graft.errors import UsageError
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.methods.qa_lora import QALoRA
from graft.methods.task_head import TaskHead
from graft.models.load import load
from graft.quant import quantise_model
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export
from graft.shipping.several import export_each
from graft.shipping.verify import verify
from graft.shipping.vllm import command, command_of_sglang
from models import inputs, randomise, tiny_base, tiny_model

KINDS = {
    "plain": LoRA(r=4, target_modules="all-linear"),
    "odd ranks": LoRA(r=12, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}),
    "odd alphas": LoRA(r=4, target_modules="all-linear", alpha_pattern={"up_proj": 3, "o_proj": 40}),
    "rslora": LoRA(r=3, use_rslora=True, target_modules="all-linear"),
    "pissa": LoRA(r=2, init_lora_weights="pissa", target_modules="all-linear"),
    "one layer": LoRA(r=2, target_modules=["model.layers.1.mlp.up_proj"]),
    "qalora": QALoRA(r=4, target_modules="all-linear"),
    "two at one place": [LoRA(r=2, target_modules=["q_proj"]), LoRA(r=3, lora_alpha=1)],
    "scale 0 first": [LoRA(r=2, lora_alpha=0, target_modules=["o_proj"]), LoRA(r=3)],
}
REFUSED = {
    "DoRA": LoRA(r=2, use_dora=True),
    "a bias beside B": LoRA(r=2, lora_bias=True),
    "more than a low-rank update": LoRA(r=2, modules_to_save=["lm_head"]),
    "at the table": LoRA(r=2, target_modules=["q_proj", "embed_tokens"]),
    "at the head": LoRA(r=2, target_modules=["q_proj", "lm_head"]),
    "ia3 is more": IA3(),
    "prefix": PrefixTuning(num_virtual_tokens=2),
    "houlsby": Houlsby(),
    "task_head": [LoRA(r=2), TaskHead(labels=["a", "b"])],
    "a rank above 512": LoRA(r=600, target_modules=["q_proj"]),
}


def logits(base, name):
    with torch.no_grad():
        return base(**inputs("llama"), adapters=[name] * 3).logits


def words_of(line):
    """The words of a command that may go on in the next lines."""
    return shlex.split(line.replace("\\\n", ""))


@pytest.mark.parametrize("kind", KINDS)
def test_what_vllm_computes_is_what_was_trained(kind, tmp_path):
    base = tiny_base()
    randomise(base.attach("sql", KINDS[kind]))
    adapted, bare = logits(base, "sql"), logits(base, None)
    folder = export(base, tmp_path / "out", to="vllm")
    rank = int(re.search(r"--max-lora-rank (\d+)", (folder / "README.md").read_text())[1])
    theirs = served(base.model, folder, rank)(inputs("llama")["ids"]).logits
    torch.testing.assert_close(theirs, adapted, atol=1e-4, rtol=1e-4)  # the oracle adds B A to the weights
    assert (adapted - bare).abs().max() > 1e-2
    assert json.loads((folder / CERTIFICATE).read_text())["logits"]["max"] < 1e-5
    assert list(base.adapters) == ["sql"] and torch.equal(logits(base, "sql"), adapted)


def test_a_file_of_pefts_with_alphas_of_its_own_answers_otherwise_in_an_older_vllm(tmp_path):
    """This is why the layout exists, and it shows that the oracle sees a wrong scale."""
    base = tiny_base()
    randomise(base.attach("sql", KINDS["odd alphas"]))
    randomise(base.attach("plain", KINDS["plain"]))
    for name, fits in {"sql": False, "plain": True}.items():
        folder = export(base, tmp_path / name, to="peft", adapter=name)
        theirs = served(base.model, folder, 8)(inputs("llama")["ids"]).logits
        assert bool((theirs - logits(base, name)).abs().max() < 1e-4) == fits
        assert ("vllm serve" in (folder / "README.md").read_text()) == fits


@pytest.mark.parametrize("reason", REFUSED)
def test_what_vllm_cannot_take_is_refused_with_the_reason_and_a_way(reason, tmp_path):
    base = tiny_base()
    base.attach("sql", REFUSED[reason])
    with pytest.raises(UsageError, match=f"{reason}.*to='hf'.*graft serve"):
        export(base, tmp_path / "out", to="vllm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "reason"), [("gpt2", "LoRA at a Conv1D"), ("bert", "no decoder")])
def test_models_without_lora_in_vllm_are_refused(family, reason, tmp_path):
    base = tiny_base(family)
    base.attach("sql", LoRA(r=2, target_modules="all-linear"))
    with pytest.raises(UsageError, match=reason):
        export(base, tmp_path / "out", to="vllm")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model in a folder, and a folder of adapters: three of LoRA's kind and one of DoRA's."""
    home = tmp_path_factory.mktemp("vllm")
    write_model(home / "model")
    base = load(home / "model", dtype="fp32")
    for name, method in {
        "dora": LoRA(r=2, use_dora=True),
        "odd": LoRA(r=3, target_modules="all-linear", rank_pattern={"q_proj": 2}),
        "sql": LoRA(r=4, target_modules="all-linear"),
        "wide": LoRA(r=20, use_rslora=True),
    }.items():
        randomise(base.attach(name, method), seed=len(name), scale=0.1)
        base.adapters[name].save(home / "adapters" / name)
        base.detach(name)
    return home


def test_peft_and_transformers_write_the_same_texts_with_the_folder(home, tmp_path):
    base = load(home / "model", dtype="fp32")
    base.load_adapter(home / "adapters/odd", "odd")
    folder = export(base, tmp_path / "out", to="vllm")
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder).eval()
    for prompt in ("Day 1. What does the cat want? ", "The horse"):
        ids = base.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        written = base.tokenizer.decode(theirs, skip_special_tokens=True)
        bare, ours = base.generate([prompt] * 2, adapters=[None, "odd"], max_new_tokens=12)
        assert ours == written and ours != bare


def test_a_folder_of_adapters_goes_out_with_one_command_that_names_them_all(home, tmp_path):
    base = load(home / "model", dtype="fp32")
    found = {path.name: path for path in sorted((home / "adapters").iterdir())}
    with pytest.warns(match="dora is left out: vLLM cannot take 'dora': DoRA"):
        done = export_each(base, tmp_path / "out", "vllm", found)
    assert done.written == {"odd": 3, "sql": 4, "wide": 20} and list(done.left_out) == ["dora"]
    assert not base.adapters
    page = (tmp_path / "out/README.md").read_text()
    line = page.partition("```sh\n")[2].partition("```")[0]
    words = words_of(line)
    assert words[:3] == ["vllm", "serve", "PATH_TO/model"]
    assert words[words.index("--max-lora-rank") + 1] == "32"
    pairs = dict(word.split("=") for word in words[words.index("--lora-modules") + 1 :])
    assert list(pairs) == ["odd", "sql", "wide"] and "`dora` is left out" in page
    ids = inputs("llama")["ids"]
    for name, place in pairs.items():
        folder = tmp_path / "out" / place
        base.load_adapter(home / "adapters" / name, name)
        theirs = served(base.model, folder, 32)(ids).logits
        torch.testing.assert_close(theirs, logits(base, name), atol=1e-4, rtol=1e-4)
        assert {check.state for check in verify(folder)} == {"same"}


def test_none_that_fits_is_an_error_and_writes_nothing(home, tmp_path):
    base = load(home / "model", dtype="fp32")
    with pytest.raises(UsageError, match=r"none of 1 adapters can go out as vllm; dora: .*DoRA"):
        export_each(base, tmp_path / "out", "vllm", {"dora": home / "adapters/dora"})
    with pytest.raises(UsageError, match="one of peft, vllm, gguf-lora"):
        export_each(base, tmp_path / "out", "hf", {"sql": home / "adapters/sql"})
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base_is_left_out(home, tmp_path):
    base = Base(tiny_model("llama"), name="other")
    found = {"sql": home / "adapters/sql"}
    base.attach("mine", LoRA(r=2))
    base.adapters["mine"].save(tmp_path / "mine")
    base.detach("mine")
    with pytest.warns(match="sql is left out"):
        done = export_each(base, tmp_path / "out", "vllm", {**found, "mine": tmp_path / "mine"})
    assert list(done.written) == ["mine"]


def test_the_command_line_writes_one_and_many_and_says_what_comes_next(home, tmp_path, capsys):
    words = ["--to", "vllm"]
    assert call(["export", str(home / "adapters/wide"), str(tmp_path / "one"), *words]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    serve = f"vllm serve {home / 'model'} --enable-lora --lora-modules wide={tmp_path / 'one'}"
    assert last == f"next    {serve} --max-lora-rank 32"
    many = ["export", str(home / "model"), str(tmp_path / "many"), *words]
    assert call([*many, "--adapters", str(home / "adapters"), "--json"]) == 1  # dora is left out
    out, err = capsys.readouterr()
    assert json.loads(out)["ranks"] == {"odd": 3, "sql": 4, "wide": 20}
    assert "dora is left out" in err and f"sql={tmp_path / 'many/sql'}" in err
    assert call([*many, "--adapters", str(home / "adapters"), "--adapter", "x", "--force"]) == 2


def test_the_commands_say_how_the_base_was_stored_and_quote_names():
    assert command("m", {"a": "x"}, 8, ["nf4"]).endswith("--max-lora-rank 8 --quantization bitsandbytes")
    line = command("m", {"a b": "x y", "c": "z"}, 9)
    assert words_of(line)[-2:] == ["a b=x y", "c=z"] and "--max-loras 2 --max-cpu-loras 2" in line
    assert command_of_sglang("m", {"a": "x"}).endswith("--enable-lora --lora-paths a=x")
    for rank in (1, 8, 9, 130, 512):
        asked = int(shlex.split(command("m", {"a": "x"}, rank))[-1])
        assert asked in MAX_RANKS and asked >= rank


def test_a_base_in_nf4_is_named_and_its_adapter_goes_out(tmp_path):
    model = tiny_model("llama")
    quantise_model(model, "nf4")
    base = Base(model, name="packed")
    randomise(base.attach("sql", LoRA(r=4)))
    with pytest.warns(match="The base was in nf4 while training"):
        folder = export(base, tmp_path / "out", to="vllm")
    assert "--quantization bitsandbytes" in (folder / "README.md").read_text()
    assert json.loads((folder / CERTIFICATE).read_text())["logits"]["max"] < 1e-4
