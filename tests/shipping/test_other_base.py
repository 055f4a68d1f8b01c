"""`graft verify` finds a base that is not the one an export was made from, however little of it changed."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_folder import write_model

from graft.methods.lora import LoRA
from graft.models.load import load
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export
from graft.shipping.verify import verify
from graft.storage.written import KEYS, MORE
from models import randomise

PROJECTION = "model.layers.0.mlp.up_proj.weight"


def by_half(tensors):
    tensors[PROJECTION] *= 1.5


def a_little(tensors):
    tensors[PROJECTION][3, 5] += 1e-3


CHANGES = [
    (by_half, {}, "files of the base"),
    (a_little, {}, "files of the base"),
    (None, {"rope_parameters": {"rope_theta": 5e3, "rope_type": "default"}}, "rope_theta of the base"),
    (None, {"rms_norm_eps": 1e-5}, "rms_norm_eps of the base"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, an adapter of it, and what was exported of the two."""
    folder = tmp_path_factory.mktemp("other")
    base = load(write_model(folder / "model"), dtype="fp32")
    randomise(base.attach("mine", LoRA(r=4)))
    base.adapters["mine"].save(folder / "mine")
    for to in ("hf", "peft"):
        export(base, folder / to, to=to, adapter="mine")
    return folder


def found(folder):
    return {check.what: check for check in verify(folder)}["base"]


@pytest.mark.parametrize("to", ["hf", "peft"])
@pytest.mark.parametrize(("change", "settings", "named"), CHANGES, ids=["x 1.5", "1e-3", "rope", "eps"])
def test_another_base_is_named_with_what_differs(home, change, settings, named, to):
    assert found(home / to).state == "same"
    model, kept = home / "model", home / "kept"
    shutil.copytree(model, kept)
    try:
        if change is not None:
            tensors = load_file(model / "model.safetensors")
            change(tensors)
            save_file(tensors, model / "model.safetensors", {"format": "pt"})
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **settings}))
        check = found(home / to)
    finally:
        shutil.rmtree(model)
        kept.rename(model)
    assert check.state == "differs" and named in check.finding


def test_a_certificate_of_before_says_nothing_of_all_the_weights(home):
    out = shutil.copytree(home / "hf", home / "before")  # beside the base, to which a relative way leads
    facts = json.loads((out / CERTIFICATE).read_text())
    assert facts["base"].pop("contents")
    facts = {key: value for key, value in facts.items() if key in KEYS[CERTIFICATE] | MORE}
    (out / CERTIFICATE).write_text(json.dumps(facts))
    assert found(out).state == "same"
