"""What a method's files say: a layout keeps what the layouts above it know."""

import pytest

from graft.core.file_layout import FileLayout
from graft.core.registry import find, names


@pytest.mark.parametrize("name", names())
def test_a_layout_extends_those_of_the_classes_above(name):
    cls = find(name)
    above = [type(vars(base)["files"]) for base in cls.__mro__[1:] if "files" in vars(base)]
    assert all(isinstance(cls.files, layout) for layout in above)


@pytest.mark.parametrize("name", names())
def test_every_method_has_a_type_and_only_knows_its_own_settings(name):
    cls = find(name)
    assert cls.files.peft_type and cls.files.own <= set(cls.__dataclass_fields__)


def test_types_name_one_method_each():
    types = [find(name).files.peft_type for name in names()]
    assert len(set(types)) == len(types)


def test_a_mark_that_is_missing_counts_as_false_in_the_library_and_as_another_value_in_peft():
    layout = FileLayout("X", marks={"a": False}, library_marks={"a": False})
    assert layout.is_marked({"a": False}) and not layout.is_marked({})
    assert layout.is_marked_by_library({}) and not layout.is_marked_by_library({"a": True})
    assert not FileLayout("X").is_marked({}) and not FileLayout("X").is_marked_by_library({})
