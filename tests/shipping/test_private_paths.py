"""No export says where things lie on the machine that made it; names, ways and fingerprints do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_folder import write_model

from graft.methods.lora import LoRA
from graft.models.load import load
from graft.shipping import provenance
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export
from graft.shipping.verify import verify
from models import randomise, tiny_base

KINDS = ("hf", "gguf", "peft", "vllm", "gguf-lora", "awq", "gptq", "compressed-tensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base and an adapter from folders below a private one, by their absolute paths."""
    private = tmp_path_factory.mktemp("anna") / "private"
    write_model(private / "model")
    opened = load(private / "model", dtype="fp32")
    randomise(opened.attach("new", LoRA(r=4, target_modules="all-linear")))
    opened.adapters["new"].save(private / "sql")
    opened.detach("new")
    opened.load_adapter(private / "sql", "sql")
    return opened


def texts(folder):
    """What anyone can read in a folder: text files, and the headers of the others."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path.name, path.read_bytes().decode("utf-8", errors="replace")


@pytest.mark.parametrize("to", KINDS)
def test_no_file_of_an_export_holds_a_private_path(to, base, tmp_path):
    if to.startswith("gguf"):
        pytest.importorskip("gguf")
    folder = export(base, tmp_path / "out", to=to, adapter="sql", lossy=True)
    private = [str(Path.home()), str(tmp_path), str(Path(base.name).parent), "/tmp/"]
    found = [(name, word) for name, text in texts(folder) for word in private if word in text]
    assert not found
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["base"]["name"] == "model" and facts["base"]["fingerprint"] == base.fingerprint()
    assert facts["created_by"].startswith("graft ") and len(facts["date"]) == 10


def test_what_lies_beside_is_found_by_the_way_and_what_was_moved_by_its_new_place(tmp_path):
    write_model(tmp_path / "model")
    base = load(tmp_path / "model", dtype="fp32")
    folder = export(base, tmp_path / "out")
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["base"]["path"] == "../model"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "out").rename(moved / "out")
    (tmp_path / "model").rename(moved / "model")
    assert {one.state for one in verify(moved / "out")} == {"same"}  # moved together
    (moved / "model").rename(tmp_path / "far")
    gone = {one.what: one for one in verify(moved / "out")}
    assert gone["base"].state == "not checked" and "--base" in gone["base"].finding
    assert {one.state for one in verify(moved / "out", base=tmp_path / "far")} == {"same"}


def test_a_way_is_left_out_where_it_spells_the_absolute_path(tmp_path, monkeypatch):
    home = tmp_path / "home" / "anna"
    for name in ("models/a", "out", "work/out"):
        (home / name).mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert provenance.way(home / "models/a", home / "work/out") == "../../models/a"
    assert provenance.way(home / "models/a", tmp_path / "shared/out") is None  # it would name anna
    assert provenance.way(Path("/usr/lib"), home / "out") is None


@pytest.mark.parametrize(
    ("name", "shown", "for_peft"),
    [
        ("/home/anna/models/llama", "llama", "llama"),
        ("models/llama", "llama", "models/llama"),
        ("../anna/llama", "llama", "llama"),
        ("seedling", "seedling", "seedling"),
        ("/x/hub/models--org--tiny/snapshots/abc123", "org/tiny", "org/tiny"),
    ],
)
def test_names_that_others_may_know(name, shown, for_peft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/llama").mkdir(parents=True)
    base = tiny_base()
    base.name = name
    assert provenance.public_name(base) == shown and provenance.name_for_peft(base) == for_peft
    assert provenance.revision(base) == ("abc123" if "snapshots" in name else None)


def test_a_hub_id_stays_with_its_revision(tmp_path):
    base = tiny_base()
    base.name = "org/tiny"
    base.files = (tmp_path / "models--org--tiny/snapshots/0123abcd/model.safetensors",)
    base.files[0].parent.mkdir(parents=True)
    base.files[0].write_bytes(b"weights")
    facts = json.loads((export(base, tmp_path / "out") / CERTIFICATE).read_text())
    assert facts["base"]["name"] == "org/tiny" and facts["base"]["revision"] == "0123abcd"
    assert facts["base"]["path"] is None


def test_an_adapter_of_a_base_elsewhere_says_how_to_load_it(base, tmp_path):
    with pytest.warns(match="load the base from where it is"):
        folder = export(base, tmp_path / "out", to="peft", adapter="sql")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert str(Path(base.name).parent) not in json.dumps(file.metadata())
    again = load(base.name, dtype="fp32")
    again.load_adapter(folder, "again")  # the fingerprint tells that it is the right one
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again(ids, adapters=["again"])[0], base(ids, adapters=["sql"])[0])
