"""What `graft.__all__` lists, what can be imported, and what an editor shows are the same names."""

import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import graft
from graft.core.registry import find, names

pytestmark = pytest.mark.quick


def test_every_name_is_importable_and_is_what_its_module_calls_so():
    for name in graft.__all__:
        value = getattr(graft, name)
        assert value.__name__ == name and value.__module__.startswith("graft.")
        assert getattr(importlib.import_module(value.__module__), name) is value


def test_the_list_is_sorted_has_no_name_twice_and_is_what_an_editor_shows():
    assert list(graft.__all__) == sorted(set(graft.__all__))
    assert {name for name in dir(graft) if not name.startswith("_")} == set(graft.__all__)


def test_every_method_has_its_class_there_and_every_class_of_a_method_is_one():
    methods = {find(name).__name__ for name in names()}
    others = {
        "Adapter", "Base", "GraftError", "Insert", "Method", "Notice", "Observer", "Recipe", "Site", "Stage",
    }  # fmt: skip
    assert {name for name in graft.__all__ if name[0].isupper()} == methods | others


def test_a_star_import_brings_the_list_and_nothing_else():
    scope = {}
    exec("from graft import *", scope)
    assert set(scope) - {"__builtins__"} == set(graft.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'graft' has no attribute 'LoRa'"):
        graft.LoRa  # noqa: B018
    with pytest.raises(AttributeError, match="'_methodz'"):
        graft._methodz  # noqa: B018


# Modules that import a package which need not be there.
EXTRAS = {"graft.kernels.triton_": "triton", "graft.evaluate.harness_model": "lm_eval"}


def test_functions_keep_their_names_whatever_is_imported():
    functions = [name for name in graft.__all__ if name.islower()]
    for module in pkgutil.walk_packages(graft.__path__, "graft."):  # the import system binds what it imports
        extra = next((name for begin, name in EXTRAS.items() if module.name.startswith(begin)), None)
        if extra is None or importlib.util.find_spec(extra):
            importlib.import_module(module.name)
    assert "train" in functions and all(inspect.isfunction(getattr(graft, name)) for name in functions)
