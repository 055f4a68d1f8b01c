"""A base is known by samples of its values, in 16 bits as packed; a run depends on all of them."""

import json
import shutil

import pytest
import torch
from mixtures import MIXTURES
from safetensors.torch import load_file, save_file
from tiny_folder import write_model

import graft
from graft import LoRA, load
from graft.base.base import Base
from graft.errors import AdapterError
from graft.quant import quantise_model
from graft.quant.origin import SAMPLES, digest_of, samples
from graft.runs.quantise import quantise
from models import randomise, tiny_base, tiny_model

PROJECTION = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model in bf16, as most are stored."""
    folder = tmp_path_factory.mktemp("base")
    write_model(folder / "model")
    file = folder / "model" / "model.safetensors"
    save_file({key: t.bfloat16() for key, t in load_file(file).items()}, file, {"format": "pt"})
    return folder


def changed(home, tmp_path, change=None, **settings):
    """Return a copy of the model with other tensors, or other settings."""
    folder = tmp_path / "changed"
    shutil.copytree(home / "model", folder)
    tensors = load_file(folder / "model.safetensors")
    if change is not None:
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def adapter_of(base, folder, name="mine"):
    randomise(base.attach(name, LoRA(r=4)))
    return base.adapters[name].save(folder)


WAYS = [(None, "bf16"), (None, "fp32"), (None, "fp16"), ("nf4", "bf16"), ("int4", "fp32"), ("int8", "fp16")]


@pytest.mark.parametrize(("quant", "dtype"), WAYS)
def test_samples_are_the_same_in_every_number_format(home, quant, dtype):
    plain, other = load(home / "model", dtype="bf16"), load(home / "model", quant, dtype)
    assert plain.origin() == other.origin() is not None and plain.fingerprint() == other.fingerprint()
    assert plain.contents()["files of the base"] == other.contents()["files of the base"]


@pytest.mark.parametrize(("family", "scheme"), [("gpt2", "nf4"), ("t5", "int8"), ("mixtral", "int4")])
def test_a_model_that_is_packed_in_memory_is_the_plain_one(family, scheme):
    settings = MIXTURES.get(family, {})
    packed = Base(quantise_model(tiny_model(family, **settings), scheme))
    plain = tiny_base(family, **settings)
    assert packed.quant == scheme and packed.origin() == plain.origin() is not None
    assert packed.origin() != tiny_base(family, seed=1, **settings).origin()


def test_samples_are_spread_over_a_tensor_and_blind_to_what_fp16_rounds_away():
    weight = torch.arange(64 * SAMPLES, dtype=torch.float32)
    assert len(samples(weight)) == SAMPLES and samples(weight)[-1] > 0.99 * len(weight) * 0.99
    small = torch.tensor([1.0, 3e-6, 2.0**-16, -1e-7]).bfloat16()
    assert small.half().bfloat16()[1] != small[1]  # fp16 holds few digits of it
    assert digest_of(small) == digest_of(small.half()) == digest_of(small.float())
    assert digest_of(small) != digest_of(small * torch.tensor([1.0, 1.0, 1.01, 1.0]))


@pytest.mark.parametrize(("trained", "used"), [("nf4", None), (None, "nf4"), ("int4", "nf4")])
def test_an_adapter_goes_from_packed_weights_to_plain_ones_and_back(home, trained, used, tmp_path):
    saved = adapter_of(load(home / "model", trained), tmp_path / "adapter")
    assert load(home / "model", used).load_adapter(saved, "again").count() > 0


def test_an_adapter_is_refused_on_the_model_that_it_was_merged_into(home, tmp_path):
    base = load(home / "model", dtype="bf16")
    saved = adapter_of(base, tmp_path / "adapter")
    graft.export(base, tmp_path / "merged", to="hf", adapter="mine")
    for quant in (None, "nf4"):
        merged = load(tmp_path / "merged", quant)
        assert merged.fingerprint() == base.fingerprint()  # embeddings and norms are the same
        with pytest.raises(AdapterError, match=r"was trained on another base.*force=True"):
            merged.load_adapter(saved, "again")
        assert merged.load_adapter(saved, "again", force=True).count() > 0


def test_a_packed_folder_of_ours_says_what_was_packed(home, tmp_path):
    base = load(home / "model")
    saved = adapter_of(base, tmp_path / "adapter")
    graft.export(base, tmp_path / "merged", to="hf", adapter="mine")
    quantise(str(home / "model"), tmp_path / "packed", "nf4")
    quantise(str(tmp_path / "merged"), tmp_path / "packed-merged", "nf4")
    packed = load(tmp_path / "packed")
    assert packed.origin() == load(home / "model").origin()
    assert packed.load_adapter(saved, "again").count() > 0
    with pytest.raises(AdapterError, match="was trained on another base"):
        load(tmp_path / "packed-merged").load_adapter(saved, "again")


def test_what_one_side_does_not_know_is_not_compared(home, tmp_path):
    saved = adapter_of(load(home / "model"), tmp_path / "adapter")
    quantise(str(home / "model"), tmp_path / "packed", "nf4")
    (tmp_path / "packed" / "certificate.json").unlink()  # it knows the file as it is now
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    del config["quantization_config"]["origin"]  # as Graft wrote it before
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    packed = load(tmp_path / "packed")
    assert packed.origin() is None and packed.load_adapter(saved, "again").count() > 0
    from_packed = adapter_of(load(tmp_path / "packed"), tmp_path / "from-packed")
    assert load(home / "model").load_adapter(from_packed, "again").count() > 0


def test_files_written_before_are_compared_by_embeddings_and_norms(home, tmp_path):
    base = load(home / "model", dtype="bf16")
    base.identity = lambda: {"name": "old", "fingerprint": base.fingerprint(), "task_type": "CAUSAL_LM"}
    saved = adapter_of(base, tmp_path / "adapter")

    def other_projection(tensors):
        tensors[PROJECTION] *= 1.5

    assert load(changed(home, tmp_path, other_projection)).load_adapter(saved, "again").count() > 0
    with pytest.raises(AdapterError, match="was trained on another base"):
        tiny_base().load_adapter(saved, "again")


def test_a_merge_in_memory_leaves_the_base_what_it_was(home, tmp_path):
    base = load(home / "model")
    saved = adapter_of(base, tmp_path / "adapter")
    fresh = load(home / "model")
    fresh.load_adapter(saved, "mine")
    fresh.merge("mine")
    assert fresh.origin() == base.origin() and fresh.load_adapter(saved, "again").count() > 0


def one_weight(tensors):
    tensors[PROJECTION][3, 5] += 1e-3


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (one_weight, {}, "files of the base"),
        (None, {"rms_norm_eps": 0.1}, "rms_norm_eps of the base"),
        (None, {"rope_parameters": {"rope_theta": 5e3, "rope_type": "default"}}, "rope_parameters"),
    ],
    ids=["a weight", "rms_norm_eps", "rope_theta"],
)  # fmt: skip
def test_the_contents_tell_every_weight_and_setting(home, tmp_path, change, settings, named):
    before = load(home / "model").contents()
    after = load(changed(home, tmp_path, change, **settings)).contents()
    (different,) = [key for key in before if before[key] != after[key]]
    assert different.startswith(named)


def test_settings_that_change_nothing_and_the_place_do_not_count(home, tmp_path):
    idle = {"transformers_version": "4.0.0", "use_cache": False, "_name_or_path": "there"}
    idle |= {"torch_dtype": "float32"}
    moved = changed(home, tmp_path, **idle)
    assert load(moved, dtype="fp32").contents() == load(home / "model", dtype="bf16").contents()


def test_a_model_in_memory_is_told_by_its_tensors():
    one, other = tiny_base(), tiny_base()
    assert one.contents() == other.contents() and "tensors of the base" in one.contents()
    with torch.no_grad():
        other.model.get_parameter(PROJECTION)[3, 5] += 1e-3
    changed = [key for key, value in one.contents().items() if other.contents()[key] != value]
    assert changed == ["tensors of the base"]
