"""What attach is given by mistake is answered in three parts."""

import pytest

from graft.errors import UsageError
from graft.methods.lora import LoRA
from models import tiny_base


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("x", LoRA, r"the class LoRA as a method.*graft.LoRA\(\)"),
        ("x", [LoRA], r"the class LoRA as a method.*graft.LoRA\(\)"),
        ("x", "lora", "'lora' as a method.*one Method, or a list of them"),
        ("x", None, "None as a method"),
        ("x", [], "no method was given"),
        ("x", [LoRA(), 5], "5 as a method"),
        (LoRA(), "x", r"LoRA\(\) as the name of an adapter.*base.attach\(\"sql\", graft.LoRA"),
        ("", LoRA(), "'' as the name"),
    ],
)
def test_wrong_arguments_of_attach_are_answered(name, method, said):
    base = tiny_base()
    with pytest.raises(UsageError, match=said):
        base.attach(name, method)
    assert not base.adapters


def test_methods_may_come_from_any_iterable():
    adapter = tiny_base().attach("x", (LoRA(r=r, target_modules=("q_proj",)) for r in (1, 2)))
    assert [method.r for method in adapter.methods] == [1, 2]
