"""Profiles of a machine: measured once, kept, doubted where they cannot be true. No test reads a clock."""

import json
import math

import pytest
import torch
from flipped_bits import every_byte

from graft import storage
from graft.kernels import measure, native
from graft.kernels.measure import QUICK, THOROUGH, Effort, Product, Profile, measured

TINY = Effort(1e-4, 1, math.inf, 2**16)


def made(fp32=(100e9, 50e9), bf16=(200e9, 400e9)):
    """A profile of two products in two formats."""
    table = tuple(
        Product(dtype, direction, *measure.SHAPES[0], rate)
        for dtype, rates in (("fp32", fp32), ("bf16", bf16))
        for direction, rate in zip(measure.DIRECTIONS, rates, strict=True)
    )
    return Profile(table, decoding=1e9, reading=2e10)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """How often the machine was measured; every look at its profile is that of a new process."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GRAFT_CACHE", raising=False)
    monkeypatch.setattr(measure, "measured", lambda effort: calls.append(effort) or made())
    monkeypatch.setattr(measure, "_busy", lambda: False)
    monkeypatch.setattr(measure, "_known", {})
    return calls


def again(monkeypatch):
    """What another process would be told."""
    monkeypatch.setattr(measure, "_known", {})
    return measure.profile()


def test_two_products_of_one_size_take_the_harmonic_mean_of_their_rates():
    rates = made().products
    assert rates["fp32"] == pytest.approx(2 / (1 / 100e9 + 1 / 50e9))
    assert rates["bf16"] == pytest.approx(2 / (1 / 200e9 + 1 / 400e9))


def test_formats_are_compared_on_the_products_that_all_of_them_have():
    table = made().table
    rates = Profile(table[:3], 1e9, 1e9).products  # bf16 was too slow for the second
    assert rates == {"fp32": pytest.approx(100e9), "bf16": pytest.approx(200e9)}


@pytest.mark.parametrize("shape", measure.SHAPES)
@pytest.mark.parametrize("direction", measure.DIRECTIONS)
@pytest.mark.parametrize("dtype", list(measure.DTYPES))
def test_every_product_has_the_shape_it_says(monkeypatch, dtype, direction, shape):
    seen, multiply = [], measure._multiply
    here = lambda x, weight, forward: seen.append(
        (x.dtype, multiply(x.to("meta"), weight.to("meta"), forward))
    )
    monkeypatch.setattr(measure, "_multiply", here)  # some processors take half a minute for one of these
    monkeypatch.setattr(measure, "_seconds", lambda work, effort: work() or 1e-9)
    rows, inputs, outputs = shape
    rate = measure._rate(dtype, direction, rows, inputs, outputs, 1e15, QUICK)
    assert seen[-1][1].shape == (rows, outputs if direction == "x Wᵀ" else inputs)
    assert seen[-1][0] == measure.DTYPES[dtype]
    assert rate == pytest.approx(2 * rows * inputs * outputs / 1e-9)


def rate_at(speed, effort, expected, monkeypatch, dtype="bf16"):
    """The rate found for a machine of `speed` FLOP/s, and the rows that were multiplied for it."""
    rows = []
    monkeypatch.setattr(measure, "_multiply", lambda x, weight, forward: rows.append(len(x)))
    monkeypatch.setattr(measure, "_seconds", lambda work, effort: work() or 2 * rows[-1] * 768 * 768 / speed)
    return measure._rate(dtype, "x Wᵀ", 512, 768, 768, expected, effort), rows


def test_a_fast_format_is_measured_on_all_rows(monkeypatch):
    rate, rows = rate_at(500e9, QUICK, None, monkeypatch)
    assert rate == pytest.approx(500e9) and rows[0] == measure.FEW and rows[-1] == 512


@pytest.mark.parametrize("speed", [1e8, 1e9, 1e10])
def test_a_slow_format_takes_no_longer_than_it_may(monkeypatch, speed):
    rate, rows = rate_at(speed, QUICK, None, monkeypatch)
    spent = [2 * n * 768 * 768 / speed for n in rows]
    assert rate == pytest.approx(speed)
    assert all(seconds <= QUICK.product_s for seconds in spent[1:])  # the first tells how slow it is


def test_a_product_that_is_known_to_be_too_slow_is_left_out_only_in_haste(monkeypatch):
    assert rate_at(1e8, QUICK, 1e8, monkeypatch) == (None, [])
    assert rate_at(1e8, THOROUGH, 1e8, monkeypatch)[0] == pytest.approx(1e8)


def test_a_real_measurement_has_every_number_and_leaves_no_setting_behind():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = measured(TINY)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert {"fp32", "bf16"} <= found.products.keys()
    assert all(0 < rate < 1e16 for rate in [*found.products.values(), found.decoding, found.reading])
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_the_quick_measurement_always_has_the_first_shape_in_both_formats(monkeypatch):
    monkeypatch.setattr(measure, "_rate", lambda *arguments: 1e9)
    table = list(measure._products(Effort(1, 1, -1, 0)))  # no time at all
    first = [(dtype, way) for way in measure.DIRECTIONS for dtype in ("fp32", "bf16")]
    assert [(one.dtype, one.direction) for one in table] == first


def test_a_machine_is_measured_once(counted, monkeypatch, tmp_path):
    assert measure.profile() == again(monkeypatch) == measure.profile() == made()
    assert counted == [QUICK]
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "graft" / "machine"]


def test_what_bench_finds_replaces_it(counted, monkeypatch):
    measure.profile()
    monkeypatch.setattr(measure, "measured", lambda effort: made(fp32=(7e9, 7e9)))
    assert measure.bench() == again(monkeypatch) == made(fp32=(7e9, 7e9))


def test_other_threads_another_level_or_another_processor_are_another_machine(counted, monkeypatch):
    measure.profile()
    changes = [
        lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 77),
        lambda: monkeypatch.setattr(measure, "processor", lambda: "another"),
        lambda: monkeypatch.setattr(native, "level", lambda: "another"),
        lambda: monkeypatch.setattr(torch, "__version__", "99"),
    ]
    for number, change in enumerate(changes, 2):
        change()
        again(monkeypatch)
        assert len(counted) == number
        again(monkeypatch)
        assert len(counted) == number


def test_a_busy_machine_is_measured_again_by_the_next_process(counted, monkeypatch):
    monkeypatch.setattr(measure, "_busy", lambda: True)
    measure.profile()
    measure.profile()
    assert len(counted) == 1
    again(monkeypatch)
    assert len(counted) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "",
        lambda kept: "[1]",
        lambda kept: "null",
        lambda kept: json.dumps(kept)[:-40],
        lambda kept: json.dumps(kept | {"table": kept["table"][:2]}),  # no bf16
        lambda kept: json.dumps(kept | {"table": []}),
        lambda kept: json.dumps(kept | {"table": [one | {"rate": 0} for one in kept["table"]]}),
        lambda kept: json.dumps(kept | {"table": [one | {"rate": "fast"} for one in kept["table"]]}),
        lambda kept: json.dumps(kept | {"table": [one | {"more": 1} for one in kept["table"]]}),
        lambda kept: json.dumps(kept | {"decoding": math.nan}),
        lambda kept: json.dumps(kept | {"reading": None}),
        lambda kept: json.dumps(kept | {"conditions": {}}),
    ],
)
def test_a_profile_that_cannot_be_believed_is_measured_again(counted, monkeypatch, tmp_path, damage):
    measure.profile()
    (file,) = tmp_path.rglob("*.json")
    text = damage(json.loads(storage.unseal(file.read_bytes())))
    file.write_bytes(
        storage.seal(text.encode()) if text.startswith("{") and text.endswith("}") else text.encode()
    )
    assert again(monkeypatch) == made()
    assert len(counted) == 2
    assert again(monkeypatch) == made()  # the file is whole again
    assert len(counted) == 2


def test_every_flipped_bit_of_a_profile_is_seen_and_the_machine_measured_again(counted, tmp_path):
    measure.profile()
    (file,) = tmp_path.rglob("*.json")
    conditions = measure._conditions()
    for _ in every_byte(file):
        assert measure._load(file.name, conditions) is None


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "GRAFT_CACHE"])
def test_a_cache_that_cannot_be_written_is_no_error(counted, monkeypatch, tmp_path, variable):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert measure.profile() == made()
