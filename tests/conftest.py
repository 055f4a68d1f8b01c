"""Settings of all tests: time decides nothing, so none fails on a slow or busy machine."""

import os

import pytest
from hypothesis import HealthCheck, settings

import graft

os.environ["GRAFT_DTYPE"] = "bf16"  # what is measured here decides nothing, in other processes neither
os.environ["GRAFT_PROGRESS"] = "off"  # no bar of any run, in other processes neither

settings.register_profile("graft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graft")


def pytest_collection_modifyitems(items):
    """Run the README's tests first: half a minute each, which one process would wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(autouse=True, scope="module")
def package_path():
    """Fail a module whose tests leave the places changed where graft looks for methods and stages."""
    before = list(graft.__path__)
    yield
    assert list(graft.__path__) == before
