"""Adapter files of ours are read only as they were written; files of others are read as they are."""

import json
import warnings

import pytest
import torch
from flipped_bits import every_byte, some_bytes
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from graft import storage
from graft.base.adapter_files import read as read_adapter
from graft.errors import AdapterError, Notice
from graft.formats import peft
from graft.methods.lora import LoRA
from models import randomise, tiny_base

FACTS = {"base": {"name": "models/animals", "fingerprint": "0a1b"}, "methods": [{"name": "lora", "p": 0.5}]}
CONFIG = {"peft_type": "LORA", "r": 2, peft.BASE: "models/animals", "target_modules": ["q_proj"]}
SEEN = (AdapterError, SafetensorError, ValueError)  # the last two become AdapterError in `adapter_files`


def tensors():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(2, 3), "b.weight": torch.randn(5).to(torch.bfloat16)}


@pytest.fixture
def folder(tmp_path):
    return peft.write(tmp_path / "pets", CONFIG, tensors(), FACTS)


def committed(tmp_path):
    """The folder that a run writes: with a manifest, and with files beside the adapter's."""

    def fill(folder):
        peft.write(folder, CONFIG, tensors(), FACTS)
        storage.write(folder / "tokenizer_config.json", b'{"eos_token": "</s>"}')

    return storage.commit(tmp_path / "adapter", fill)


def unseen(folder, path, bits):
    """The places of flips after which the adapter is read without a word."""
    silent = []
    for place in every_byte(path, bits=bits):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            try:
                peft.read(folder)
            except (*SEEN, Notice):
                continue
        silent.append(place)
    return silent


def test_every_flipped_bit_of_the_tensors_file_is_seen(folder):
    assert not unseen(folder, folder / peft.WEIGHTS, bits=3)


def test_every_flipped_bit_of_the_settings_is_seen(folder):
    assert not unseen(folder, folder / peft.CONFIG, bits=8)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]
)
def test_every_flipped_bit_beside_a_manifest_is_seen(tmp_path, name):
    folder = committed(tmp_path)
    assert not unseen(folder, folder / name, bits=1)


def test_every_flipped_bit_of_a_manifest_is_seen(tmp_path):
    folder = committed(tmp_path)
    assert not unseen(folder, folder / storage.MANIFEST, bits=2)


@pytest.mark.parametrize("name", [peft.CONFIG, peft.WEIGHTS])
def test_every_cut_is_seen(folder, name):
    data = (folder / name).read_bytes()
    end = len(data.rstrip()) if name == peft.CONFIG else len(data)  # the last line break says nothing
    for length in range(0, end, 7):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(SEEN):
            peft.read(folder)


@pytest.mark.parametrize("name", [peft.CONFIG, peft.WEIGHTS])
def test_the_file_of_another_adapter_of_the_same_shape_is_seen(folder, tmp_path, name):
    others = {key: tensor + 1 for key, tensor in tensors().items()}
    other = peft.write(tmp_path / "other", CONFIG | {"lora_alpha": 3}, others, FACTS)
    with safe_open(other / peft.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(AdapterError, match="was changed after the adapter was saved"):
        peft.read(folder)
    # Tensors under the digests of others.
    save_file(tensors(), other / peft.WEIGHTS, metadata=metadata)
    with pytest.raises(AdapterError, match="tensors"):
        peft.read(other)


def test_both_files_of_another_adapter_beside_a_manifest_are_seen(tmp_path):
    folder = committed(tmp_path)
    peft.write(tmp_path / "other", CONFIG | {"r": 3}, tensors(), FACTS)
    for name in (peft.CONFIG, peft.WEIGHTS):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(AdapterError, match=r"adapter_config.json was changed after Graft wrote it"):
        peft.read(folder)


def test_a_missing_file_that_the_manifest_lists_is_named(tmp_path):
    folder = committed(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(AdapterError, match=r"tokenizer_config.json is missing.*delete .*manifest.json"):
        peft.read(folder)


def test_a_folder_with_a_manifest_may_be_copied_renamed_and_added_to(tmp_path):
    folder = committed(tmp_path).rename(tmp_path / "my-pets")
    (folder / "README.md").write_text("# Pets")
    config, read, facts = peft.read(folder)
    assert (config, facts) == (CONFIG, FACTS) and torch.equal(read["a.weight"], tensors()["a.weight"])


def test_settings_edited_on_purpose_are_refused_with_the_way_to_keep_them(tmp_path):
    base = tiny_base()
    adapter = base.attach("pets", LoRA(r=4, lora_alpha=8))
    randomise(adapter)
    folder = adapter.save(tmp_path / "pets")
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(config | {"lora_alpha": 16}))
    with pytest.raises(AdapterError, match=r"adapter_config.json was changed after.*force=True"):
        base.load_adapter(folder, "edited")
    base.load_adapter(folder, "edited", force=True).save(folder)
    assert base.load_adapter(folder, "again").methods[0].lora_alpha == 16


def test_settings_written_in_another_order_are_the_same(folder):
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(dict(reversed(config.items()))) + "\r\n")
    assert peft.read(folder)[0] == CONFIG


def test_another_place_of_the_base_may_be_written_into_the_settings_and_is_told(folder):
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(config | {peft.BASE: "elsewhere"}))
    with pytest.warns(Notice, match=r"names the base 'elsewhere'; it was saved with 'models/animals'"):
        assert peft.read(folder)[0][peft.BASE] == "elsewhere"


def test_saving_into_a_folder_with_a_manifest_leaves_no_manifest_of_what_was_there(tmp_path):
    folder = committed(tmp_path)
    peft.write(folder, CONFIG | {"r": 3}, tensors(), FACTS)
    assert peft.read(folder)[0]["r"] == 3
    assert not (folder / storage.MANIFEST).exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "an app", "files": {}}', '{"icons": [1]}'])
def test_a_manifest_of_another_program_is_no_manifest_and_stays(folder, text):
    (folder / storage.MANIFEST).write_text(text)
    assert peft.read(folder)[0] == CONFIG
    peft.write(folder, CONFIG, tensors(), FACTS)
    assert (folder / storage.MANIFEST).read_text() == text


def test_files_without_digests_are_read_as_they_are(tmp_path):
    for metadata in (None, {"format": "pt"}, {"graft": json.dumps(FACTS)}):
        save_file(tensors(), tmp_path / peft.WEIGHTS, metadata=metadata)
        (tmp_path / peft.CONFIG).write_text(json.dumps(CONFIG))
        config, read, facts = peft.read(tmp_path)
        assert config == CONFIG and read.keys() == tensors().keys()
        assert facts == (FACTS if metadata and "graft" in metadata else {})


def test_equal_adapters_are_equal_files(tmp_path):
    one, two = (peft.write(tmp_path / name, CONFIG, tensors(), FACTS) for name in ("one", "two"))
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_peft_reads_the_tensors_and_the_settings_of_a_file_with_digests(folder):
    from peft import LoraConfig

    assert load_file(folder / peft.WEIGHTS).keys() == tensors().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LoraConfig.from_pretrained(str(folder)).r == 2


def test_one_flipped_bit_of_a_saved_adapter_is_an_adapter_error_at_the_door(tmp_path):
    base = tiny_base()
    randomise(base.attach("pets", LoRA(r=4)))
    folder = base.adapters["pets"].save(tmp_path / "pets")
    for _ in some_bytes(folder / peft.WEIGHTS, 40):
        with pytest.raises(AdapterError):
            read_adapter(folder, base.sites)
