"""Broken adapter folders load, or are refused by name: nothing else happens, and not for long."""

import resource
import time

import pytest
from adapter_mutations import mutate, outcome, write_seeds

from models import tiny_base

CASES = 240


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama")


@pytest.fixture(scope="module")
def seeds(base, tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("seeds"), base)


@pytest.mark.filterwarnings("ignore")
def test_a_broken_adapter_is_valid_or_refused_by_name(base, seeds, tmp_path):
    for seed in seeds:
        assert outcome(base, seed) == "valid", seed
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = set()
    for number in range(CASES):
        what = mutate(seeds[number % len(seeds)], tmp_path / "broken", number)
        start = time.thread_time()
        try:
            seen.add(outcome(base, tmp_path / "broken"))
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        assert time.thread_time() - start < 5, what
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert {"valid", "AdapterError"} <= seen
    assert grown < 64 * 1024  # KiB; the files are smaller than 1 MiB
    assert all(p.equal(before[name]) for name, p in base.model.named_parameters())


def test_a_number_breaks_a_folder_in_the_same_way_each_time(seeds, tmp_path):
    for number in range(30):
        said = [mutate(seeds[0], tmp_path / name, number) for name in ("a", "b")]
        assert said[0] == said[1]
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), said
