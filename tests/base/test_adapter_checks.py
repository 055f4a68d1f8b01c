"""What the files of strangers ask for: refused by name, before memory or time is spent on it."""

import json
import re
import shutil
import time
import tracemalloc

import pytest
import torch
from adapter_mutations import BOMB, write_seeds
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from graft.core import registry
from graft.errors import AdapterError, GraftError
from models import tiny_base

BILLION = 1_000_000_000


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama")


@pytest.fixture(scope="module")
def seeds(base, tmp_path_factory):
    return {folder.name: folder for folder in write_seeds(tmp_path_factory.mktemp("seeds"), base)}


@pytest.fixture
def broken(seeds, tmp_path):
    """Return a maker of broken copies: of a kind, with other settings, facts or tensors."""

    def make(kind, text=None, *, facts=None, tensors=None, **settings):
        folder = shutil.copytree(seeds[kind], tmp_path / "broken", dirs_exist_ok=True)
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings) if text is None else text)
        if facts is not None or tensors is not None:
            held = load_file(weights)
            with safe_open(weights, "pt") as file:
                said = file.metadata()
            said = (
                said if facts is None else {"graft": facts if isinstance(facts, str) else json.dumps(facts)}
            )
            save_file(held if tensors is None else tensors(held), weights, metadata=said)
        return folder

    return make


def refused(base, folder, match=""):
    with pytest.raises(AdapterError, match=match) as caught:
        base.load_adapter(folder, "x")
    assert "x" not in base.adapters
    return caught.value


def first(change):
    """Return a change of the first of the tensors."""

    def changed(tensors):
        key = min(tensors)
        return tensors | {key: change(tensors[key])}

    return changed


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_alpha", "16"), ("lora_alpha", 1e30), ("lora_alpha", float("nan")), ("lora_alpha", 10**400),
        ("alpha_pattern", {"q_proj": float("inf")}), ("target_modules", 5), ("r", True), ("r", 0),
        ("r", -1), ("r", 2 * BILLION), ("r", 8.0), ("rank_pattern", {"q_proj": 2 * BILLION}),
        ("modules_to_save", "lm_head"), ("layers_to_transform", 10**30), ("layers_pattern", {"a": 1}),
        ("bias", 5), ("init_lora_weights", [1]), ("peft_type", [1]), ("task_type", 5),
        ("trainable_token_indices", {"embed_tokens": ["a"]}),
    ],
)  # fmt: skip
def test_a6_d21_a_setting_of_another_type_or_out_of_range_is_named(base, broken, setting, value):
    refused(base, broken("lora", **{setting: value}), setting)


@pytest.mark.parametrize("alpha", [1e5, -1e5])
def test_a6_an_update_that_is_scaled_more_than_ten_thousand_times_is_refused(base, broken, alpha):
    refused(base, broken("lora", lora_alpha=alpha), "scales the update")
    refused(base, broken("lora", alpha_pattern={"q_proj": alpha}), "scales the update")


def test_a6_adalora_wants_an_alpha_above_zero(base, broken):
    for alpha in (0, -8):
        refused(base, broken("adalora", lora_alpha=alpha), "lora_alpha")


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '"x"', "[" * 100_000, '{"a":' * 3000, "{", '{"r":' + "9" * 5000]
)
def test_d21_a_config_that_is_no_object_of_json_is_damaged(base, broken, text):
    refused(base, broken("lora", text), "damaged|settings belong")


@pytest.mark.parametrize(
    "facts",
    [
        [], 5, {"methods": 5}, {"methods": [5]}, {"methods": [{}]}, {"methods": [{"name": 5}]}, {"base": 5},
        {"methods": {"name": "lora"}}, {"base": {"fingerprint": 5}}, {"methods": [{"name": "nobody"}]},
        "[" * 50_000, "{",
    ],
)  # fmt: skip
def test_d21_metadata_of_another_shape_are_named(base, broken, facts):
    refused(base, broken("lora", facts=facts))


@pytest.mark.parametrize("methods", [None, 5, [], [5], [{"peft_type": "LORA"}]])
def test_d21_a_mix_without_its_methods_is_named(base, broken, methods):
    refused(base, broken("mix", methods=methods))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.complex64, torch.float8_e4m3fn]
)
def test_a6_tensors_that_are_no_floats_of_16_or_32_bits_are_refused(base, broken, dtype):
    refused(base, broken("lora", tensors=first(lambda t: t.to(dtype))), "lora_A")


def test_a6_64_bits_pass_if_their_numbers_fit_into_32(base, broken):
    refused(base, broken("lora", tensors=first(lambda t: torch.full_like(t.double(), 1e300))), "32 bits")
    base.load_adapter(broken("lora", tensors=first(lambda t: t.double())), "x")
    base.detach("x")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lora", {"r": 4096}), ("lora", {"rank_pattern": {"q_proj": 4096}}), ("vera", {"r": 4096}),
        ("vera", {"projection_prng_key": 10**25}), ("ladder", {"reduction_factor": 1}),
        ("prompt", {"num_virtual_tokens": 50_000_000}), ("prompt", {"num_virtual_tokens": 60}),
        ("p_tuning", {"num_virtual_tokens": 1_000_000}), ("prefix", {"num_virtual_tokens": 1_000_000}),
        ("prompt", {"num_transformer_submodules": 2 * BILLION}), ("warp", {"num_labels": BILLION}),
        ("warp", {"num_labels": 1_000_000}), ("warp", {"mask_token_id": BILLION}),
        ("boft", {"boft_n_butterfly_factor": BILLION}), ("oft", {"num_cayley_neumann_terms": BILLION}),
        ("trainable_tokens", {"token_indices": [BILLION]}), ("trainable_tokens", {"token_indices": "all"}),
    ],
)  # fmt: skip
def test_c15_no_size_is_believed_that_the_tensors_do_not_have(base, broken, kind, settings):
    folder = broken(kind, **settings)
    tracemalloc.start()
    before = torch.get_rng_state()
    refused(base, folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn: nothing was built


@pytest.mark.parametrize("labels", [BILLION, 1_000_000, 0, -1, "3"])
def test_c15_a_head_has_as_many_classes_as_its_tensor(base, broken, labels):
    refused(
        base,
        broken(
            "classifier", facts={"methods": [{"name": "lora"}, {"name": "task_head", "num_labels": labels}]}
        ),
    )


def test_c17_a_hundred_thousand_empty_tensors_are_counted_before_anything_else(base, broken):
    many = {f"base_model.model.x{number}": torch.empty(0, 4) for number in range(100_000)}
    folder = broken("lora", tensors=lambda tensors: tensors | many)
    start = time.thread_time()
    refused(base, folder, "header|tensors")
    assert time.thread_time() - start < 5


def test_c17_as_many_tensors_as_pass_are_still_quick(base, broken):
    many = {f"base_model.model.x{number}": torch.empty(0, 4) for number in range(4000)}
    start = time.thread_time()
    refused(base, broken("lora", tensors=lambda tensors: tensors | many), "not in the model")
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", [BOMB, ".*" * 12 + "[!?]", "("])
def test_c14_an_expression_of_a_file_ends_whatever_it_is(base, broken, setting, pattern):
    value = {pattern: 4} if setting.endswith("_pattern") else pattern
    start = time.thread_time()
    try:
        base.load_adapter(broken("lora", **{setting: value}), "x")
        base.detach("x")
    except GraftError as error:
        assert re.search("regular expression|matches no site|do not fit", str(error))
    assert time.thread_time() - start < 5


def test_a_file_makes_us_read_no_other_file(base, broken, tmp_path):
    (tmp_path / "other").mkdir()
    for kind, settings in {
        "adapter_fusion": {"adapters": [str(tmp_path / "other")]},
        "ipt": {"peft_type": "GRAFT_IPT", "subspace": str(tmp_path / "other")},
    }.items():
        refused(base, broken(kind, **settings))
    refused(base, broken("adapter_fusion", adapters=[{"name": "ipt", "subspace": "x"}]), "cannot be fused")
    base.load_adapter(broken("warp", label_words=["a", "b"], tokenizer_name_or_path="x"), "x")
    base.detach("x")


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "full"])
def test_what_is_null_in_a_file_is_what_is_left_out(base, broken, seeds, name):
    config = json.loads((seeds[name] / "adapter_config.json").read_text())
    owner = next(c for c in map(registry.find, registry.names()) if c.files.peft_type == config["peft_type"])
    base.load_adapter(seeds[name], "x")
    absent = base.adapters["x"].methods
    base.detach("x")
    nulls = dict.fromkeys((f for f in owner.__dataclass_fields__ if f not in config), None)
    base.load_adapter(broken(name, **nulls), "x")
    assert base.adapters["x"].methods == absent
    base.detach("x")
