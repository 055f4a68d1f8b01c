"""`dtype: auto`: the rule, who may overrule it, and what a base that it chose is written as."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import CONFIG, write_model

from graft.errors import Notice, UsageError
from graft.kernels import measure
from graft.kernels.measure import Product, Profile
from graft.models import dtype as chooser
from graft.models.dtype import AHEAD, by_rates, choose
from graft.models.fresh import fresh
from graft.models.load import load


def machine(monkeypatch, fp32, bf16):
    """Let this machine multiply at these FLOP/s."""
    rates = {"fp32": fp32, "bf16": bf16}
    table = tuple(Product(dtype, "x Wᵀ", 512, 768, 768, rate) for dtype, rate in rates.items())
    monkeypatch.delenv("GRAFT_DTYPE", raising=False)
    monkeypatch.setattr(measure, "profile", lambda: Profile(table, 1.0, 1.0))


@pytest.fixture
def fast_fp32(monkeypatch):
    machine(monkeypatch, 300e9, 170e9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose files are in bf16."""
    home = write_model(tmp_path_factory.mktemp("dtype") / "model")
    return in_files(home, torch.bfloat16)


def in_files(home, dtype, said=True):
    """Write a folder's tensors in this dtype.  said: config.json says so."""
    save_file(
        {key: value.to(dtype) for key, value in load_file(home / "model.safetensors").items()},
        home / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((home / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.") if said else None
    (home / "config.json").write_text(json.dumps(config))
    return home


@pytest.mark.quick
@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"),  # verified-facts 16: Zen 5, an Intel core without AMX; then the border
    [(205, 640, "bf16"), (310, 170, "fp32"), (100, 100 * AHEAD, "bf16"), (100, 100 * AHEAD - 1, "fp32")],
)
def test_bf16_is_taken_where_it_is_clearly_ahead(fp32, bf16, chosen):
    choice = by_rates(fp32 * 1e9, bf16 * 1e9)
    assert choice.dtype == chosen and choice.free
    assert f"{chosen}: products" in str(choice) and "measured on this machine" in choice.why


@pytest.mark.quick
def test_the_environment_overrules_the_measurement_and_is_told_a_wrong_word(monkeypatch, fast_fp32):
    assert choose("cpu").dtype == "fp32"
    monkeypatch.setenv("GRAFT_DTYPE", "bf16")
    assert choose("cpu").dtype == choose("cuda").dtype == "bf16" and not choose("cpu").free
    monkeypatch.setenv("GRAFT_DTYPE", "fp16")
    with pytest.raises(UsageError, match=r"GRAFT_DTYPE='fp16'.*one of bf16, fp32"):
        choose("cpu")


@pytest.mark.quick
@pytest.mark.parametrize(("able", "dtype"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_where_it_can(monkeypatch, fast_fp32, able, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: able)
    assert choose("cuda").dtype == dtype


@pytest.mark.parametrize("asked", ["auto", None])
def test_a_base_computes_in_the_faster_format_and_is_written_in_that_of_its_files(folder, fast_fp32, asked):
    base = load(folder, dtype=asked)
    assert base.dtype == torch.float32 and base.file_dtype == torch.bfloat16
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    packed = load(folder, "nf4", asked)
    assert packed.dtype == torch.float32 and packed.file_dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_a_format_that_was_asked_for_is_obeyed_in_files_too(folder, fast_fp32, dtype):
    base = load(folder, dtype=dtype)
    assert (
        base.dtype
        == base.file_dtype
        == {"bf16": torch.bfloat16, "fp32": torch.float32}.get(dtype, torch.float16)
    )


def test_on_a_machine_that_is_faster_in_bf16_everything_is_in_bf16(folder, monkeypatch):
    machine(monkeypatch, 200e9, 600e9)
    base = load(folder)
    assert base.dtype == base.file_dtype == torch.bfloat16


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_files_are_written_as_they_were_whether_or_not_config_json_says_how(tmp_path, fast_fp32, dtype, said):
    home = in_files(write_model(tmp_path / "model"), dtype, said)
    assert load(home).file_dtype == dtype
    assert load(home, "int4").file_dtype == (dtype if dtype.itemsize == 2 else torch.bfloat16)


@pytest.mark.parametrize(("type", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("q8_0", None)])
def test_a_gguf_file_is_written_in_16_bits_unless_it_has_32(folder, tmp_path, fast_fp32, type, dtype):
    from graft.shipping.export import export

    file = next(export(load(folder, dtype="fp32"), tmp_path / "out", to="gguf", type=type).glob("*.gguf"))
    assert load(file, "none").dtype == torch.float32
    assert load(file, "none").file_dtype == (dtype or torch.bfloat16)


def test_fp32_that_does_not_fit_gives_way_to_bf16_with_a_notice(folder, monkeypatch, fast_fp32):
    weights = 4 * load(folder).count()
    for room, dtype in ((1.1, torch.float32), (0.9, torch.bfloat16)):
        monkeypatch.setattr(chooser, "free_memory", lambda room=room: int(room * weights / chooser.ROOM))
        if dtype == torch.bfloat16:
            with pytest.warns(Notice, match="computes in bf16, though fp32 is faster here"):
                assert load(folder).dtype == dtype
        else:
            assert load(folder).dtype == dtype


def test_packed_weights_count_as_packed(folder, monkeypatch, fast_fp32):
    base = load(folder, "nf4")
    tables = sum(p.numel() for p in base.model.parameters() if p.is_floating_point() and p.ndim == 2)
    room = 4 * tables + base.count() // 2 + 4096
    assert room < 4 * base.count()
    monkeypatch.setattr(chooser, "free_memory", lambda: int(room / chooser.ROOM))
    assert load(folder, "nf4").dtype == torch.float32


def test_the_environment_is_obeyed_without_a_look_at_the_memory(folder, monkeypatch):
    monkeypatch.setenv("GRAFT_DTYPE", "fp32")
    monkeypatch.setattr(chooser, "free_memory", lambda: 0)
    assert load(folder).dtype == torch.float32


def test_a_fresh_model_follows_too(monkeypatch):
    for rates, dtype in (((2e9, 1e9), torch.float32), ((1e9, 2e9), torch.bfloat16)):
        machine(monkeypatch, *rates)
        assert fresh({**CONFIG, "vocab_size": 64}, dtype="auto").dtype == dtype
    assert fresh({**CONFIG, "vocab_size": 64}).dtype == torch.float32  # as before, if nothing is said
