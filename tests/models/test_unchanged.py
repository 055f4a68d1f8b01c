"""Model folders that Graft wrote are loaded only as they were written; folders of others as they are."""

import json
import shutil
import threading

import pytest
from flipped_bits import every_byte, some_bytes
from tiny_folder import write_model

from graft import storage
from graft.combine.extract import difference
from graft.errors import ModelError
from graft.models.files import read_config
from graft.models.load import load
from graft.models.tokenizer import tokenizer_in
from graft.models.unchanged import Comparison
from graft.runs.quantise import quantise
from graft.shipping.export import export
from graft.storage import digests
from graft.storage.written import CERTIFICATE, KEYS, MORE

OLDER = KEYS[CERTIFICATE] | MORE  # what a certificate had before it had a seal
LOADED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind that has a certificate, by name; "plain" is that of another program."""
    place = tmp_path_factory.mktemp("written")
    plain = write_model(place / "plain")
    base = load(plain)
    quantise(str(plain), place / "quantised", "nf4")
    quantise(str(plain), place / "groups", "int4", group_size=32)
    for name, how in {"hf": {}, "gptq": {}, "awq": {}, "gguf": {"to": "gguf", "type": "f16"}}.items():
        export(base, place / name, **{"to": name, **how})
    export(load(plain, quant="nf4", group_size=32), place / "bnb", to="bnb")
    return place


@pytest.fixture
def folder(folders, tmp_path):
    """folder(kind): a copy that a test may damage."""

    def copied(kind):
        return shutil.copytree(folders / kind, tmp_path / kind)

    return copied


def flip(path):
    """Leave one bit of a file flipped."""
    next(some_bytes(path, 1))


@pytest.mark.parametrize("kind", ["hf", "quantised", "groups", "gptq", "awq", "bnb"])
def test_one_flipped_bit_in_any_file_that_is_loaded_is_named(folder, kind):
    copy = folder(kind)
    load(copy)
    for name in [*LOADED, *(file.name for file in copy.glob("special_tokens*"))]:
        for _ in some_bytes(copy / name, 6):
            with pytest.raises(ModelError):
                load(copy)
    load(copy)


def test_every_byte_of_a_quantised_models_weights_is_compared(folder):
    copy = folder("quantised")
    for _ in some_bytes(copy / "model.safetensors", 300):
        with pytest.raises(ModelError, match=r"model.safetensors was changed after Graft wrote it"):
            Comparison(copy).wait()
    Comparison(copy).wait()


def test_a_gguf_file_is_compared_with_the_certificate_beside_it(folder):
    copy = folder("gguf")
    path = next(copy.glob("*.gguf"))
    load(path)
    for _ in some_bytes(path, 12):
        with pytest.raises(ModelError):
            load(path)
    load(path)


@pytest.mark.parametrize("kind", ["hf", "quantised"])
def test_every_flipped_bit_of_a_certificate_is_seen(folder, kind):
    copy = folder(kind)
    for _ in every_byte(copy / "certificate.json"):
        with pytest.raises(ModelError, match=r"certificate.json is damaged, or was changed"):
            storage.require_unchanged(copy, ModelError)


def test_cuts_swaps_and_missing_files_are_named(folder):
    copy = folder("hf")
    weights, config = copy / "model.safetensors", copy / "config.json"
    sound = weights.read_bytes()
    for part in range(16):
        weights.write_bytes(sound[: len(sound) * part // 16])
        with pytest.raises(ModelError):
            load(copy)
    weights.write_bytes(sound)
    (copy / "generation_config.json").write_bytes(config.read_bytes())
    with pytest.raises(ModelError, match=r"generation_config.json was changed"):
        load(copy)
    (copy / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"generation_config.json is missing"):
        load(copy)


def test_the_error_of_changed_files_stands_before_that_of_what_they_break(folder):
    copy = folder("hf")
    (copy / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match=r"model.safetensors was changed after Graft wrote it"):
        load(copy)


def test_a_config_is_compared_wherever_it_is_read_alone(folder):
    copy = folder("hf")
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(facts | {"rms_norm_eps": 0.1}))
    with pytest.raises(ModelError, match=r"config.json was changed"):
        read_config(copy)


def test_a_tokenizer_is_compared_wherever_it_is_read_alone(folder):
    copy = folder("hf")
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace('"type": "BPE"', '"type":  "BPE"'))
    with pytest.raises(ModelError, match=r"tokenizer.json was changed"):
        tokenizer_in(copy)


def test_a_difference_of_models_reads_no_changed_weights(folder, folders):
    copy = folder("hf")
    flip(copy / "model.safetensors")
    with pytest.raises(ModelError):
        difference(load(folders / "plain"), copy)


def test_a_folder_changed_on_purpose_is_loaded_without_its_certificate(folder):
    copy = folder("hf")
    (copy / "README.md").write_text("# Mine")  # nothing that loading reads
    load(copy)
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(facts | {"rope_theta": 5000.0}))
    with pytest.raises(ModelError, match=r"if you changed it on purpose, delete .*certificate.json"):
        load(copy)
    (copy / "certificate.json").unlink()
    load(copy)


@pytest.mark.parametrize("text", ["{}", "[]", '{"issuer": "an authority", "files": 3}'])
def test_a_certificate_of_another_program_says_nothing(folder, text):
    copy = folder("plain")
    (copy / "certificate.json").write_text(text)
    load(copy)


def test_a_certificate_that_changed_its_name_with_another_file_is_missed(folder):
    copy = folder("hf")
    names = [copy / "certificate.json", copy / "generation_config.json", copy / "between"]
    for name, new in ((0, 2), (1, 0), (2, 1)):
        names[name].rename(names[new])
    with pytest.raises(ModelError, match=r"certificate.json is damaged, or was changed"):
        load(copy)


def test_a_certificate_without_a_seal_is_read_as_older_ones_are(folder):
    copy = folder("hf")
    facts = json.loads((copy / "certificate.json").read_text())
    (copy / "certificate.json").write_text(json.dumps(facts | {"sha256": None}, indent=2))
    with pytest.raises(ModelError):  # a newer one, whose seal is gone
        load(copy)
    older = {key: value for key, value in facts.items() if key in OLDER}
    (copy / "certificate.json").write_text(json.dumps(older, indent=2))
    load(copy)
    flip(copy / "model.safetensors")
    with pytest.raises(ModelError):
        load(copy)


def test_names_that_lead_out_of_the_folder_are_refused(folder):
    copy = folder("hf")
    facts = json.loads((copy / "certificate.json").read_text())
    facts.pop("sha256")
    facts["files"]["../../../dev/zero.json"] = "0" * 64
    (copy / "certificate.json").write_bytes(storage.seal(json.dumps(facts).encode()))
    with pytest.raises(ModelError, match="damaged"):
        load(copy)


def test_weights_are_hashed_once_and_again_after_a_change(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    monkeypatch.setattr(digests, "SMALL", 0)
    read, real = [], digests._hashed
    monkeypatch.setattr(digests, "_hashed", lambda file, kind: read.append(file.name) or real(file, kind))
    copy = folder("hf")
    load(copy), load(copy)
    assert len(read) == len(set(read)) and str(copy / "model.safetensors") in read
    flip(copy / "model.safetensors")
    with pytest.raises(ModelError):
        load(copy)


def test_a_folder_of_an_older_graft_is_compared_by_sha256(folder):
    copy = folder("hf")
    facts = json.loads((copy / "certificate.json").read_text())
    del facts["sha256"], facts["xxh3"]
    (copy / "certificate.json").write_bytes(storage.seal(json.dumps(facts).encode()))
    load(copy)
    flip(copy / "model.safetensors")
    with pytest.raises(ModelError, match="SHA-256"):
        load(copy)


def test_weights_are_hashed_in_a_thread_that_no_exit_waits_for(folder):
    comparison = Comparison(folder("hf"))
    assert comparison._thread.daemon and comparison._thread is not threading.current_thread()
    comparison.wait()
