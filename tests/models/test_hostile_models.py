"""A model folder may claim and name anything: it loads, or a named error comes soon and in little memory."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from model_mutations import damage
from safetensors.torch import load_file, save_file
from tiny_folder import write_model

from graft.errors import GraftError, ModelError
from graft.models.load import load

CASES = int(os.environ.get("GRAFT_FUZZ", "60"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CLAIMS = {
    "vocab_size": 5_000_000,
    "num_hidden_layers": 10**7,
    "num_labels": 10**9,
    "hidden_size": 10**9,
    "intermediate_size": 10**8,
    "head_dim": 10**8,
}


MEASURED = """
import json, pathlib, resource, sys
from graft.errors import ModelError
from graft.models.load import load
folder, claims = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
load(folder)
for key, value in claims.items():
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(folder)
    except ModelError as error:
        print(error)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 100 << 10, (key, more)
"""


def test_a_size_that_the_files_do_not_hold_is_refused_before_it_is_made(folder):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder), json.dumps(CLAIMS)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.replace(" is ", " ").splitlines()
    assert len(said) == len(CLAIMS) and all(str(folder) in line for line in said)
    for line, (key, value) in zip(said, CLAIMS.items(), strict=True):
        assert f"{key} {value:,}" in line


def test_more_layers_than_the_files_hold_are_refused(folder):
    edit(folder, num_hidden_layers=5_000)
    with pytest.raises(ModelError, match="num_hidden_layers 5,000"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": 5}, "architectures is 5"),
        ({"architectures": [5]}, "architectures"),
        ({"model_type": 5}, "model_type is 5"),
        ({"hidden_size": 10**60}, "a number of 64 bits"),
        ({"quantization_config": [1]}, "quantization_config"),
        ({"transformers_weights": "../x.safetensors"}, "a file inside the folder"),
    ],
)
def test_a_setting_of_a_strange_kind_is_named(changes, said, folder):
    edit(folder, **changes)
    with pytest.raises(ModelError, match=said):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 200_000, '{"a":' * 100_000])
def test_a_file_that_is_no_json_object_is_named(name, text, folder):
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=name.removesuffix(".json")):
        load(folder)


@pytest.mark.parametrize("weight_map", [[1], {"a": 5}, {"a": "../m/model.safetensors"}, {"a": "/etc/passwd"}])
def test_an_index_that_leads_elsewhere_is_refused(weight_map, folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"index\.json"):
        load(folder)


@pytest.mark.parametrize("path", ["x" * 100_000, "x/" * 50_000, "a\0b"])
def test_a_name_that_no_disk_can_have_is_no_model(path):
    with pytest.raises(ModelError) as error:
        load(path)
    assert len(str(error.value)) < 2_000


def test_a_name_of_100_000_letters_is_shortened_in_every_error(folder):
    edit(folder, model_type="x" * 100_000)
    with pytest.raises(ModelError, match=r"x\.\.\. \(100,00\d characters\)") as error:
        load(folder)
    assert len(str(error.value)) < 1_000


def scaled(folder, name, number, dtype):
    state = load_file(folder / "model.safetensors")
    weights = {key: tensor.to(dtype) for key, tensor in state.items()}
    weights[name][0, 0] = number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weights_near_the_largest_bf16_are_told_as_such(dtype, folder):
    scaled(folder, NAME, 3e38, torch.bfloat16)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.*up to 3e\+38, near the largest"):
        load(folder, dtype=dtype)


def test_weights_that_fp16_does_not_hold_are_told_with_the_dtype_that_does(folder):
    scaled(folder, NAME, 1e6, torch.bfloat16)
    with pytest.raises(ModelError, match="load the model with dtype bf16"):
        load(folder, dtype="fp16")
    load(folder, dtype="bf16")


@pytest.mark.filterwarnings("ignore::graft.errors.Notice")
@pytest.mark.parametrize("block", range(max(CASES // 20, 1)))
def test_a_damaged_folder_loads_or_is_named(block, whole, tmp_path):
    for number in range(20 * block, 20 * block + 20):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        done = damage(folder, number)
        try:
            base = load(folder)
            if base.tokenizer is not None:
                base.tokenizer("the cat")
        except GraftError as error:
            assert len(str(error)) < 3_000, (number, done)
        except Exception as error:
            raise AssertionError(f"case {number}: {done}") from error
        shutil.rmtree(folder)
