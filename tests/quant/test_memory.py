"""The memory promise of quantising while loading, on a small model (the full-size run is a benchmark)."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory" / "quantise_peak.py"


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_peak_is_below_packed_bytes_plus_three_tensors(quant):
    spec = importlib.util.spec_from_file_location("quantise_peak", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.run(quant, hidden=512, layers=8)
    assert found["peak"] <= found["bound"] - 32  # half of the 64 MiB are for larger models
