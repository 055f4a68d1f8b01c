import pytest
import torch

from graft.errors import AdapterError
from graft.quant.finite import is_finite, not_finite, require_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_anywhere_is_seen(value, dtype):
    for at in (0, 500, 999):
        tensor = torch.randn(1000).to(dtype)
        assert is_finite(tensor)
        tensor[at] = value
        assert not is_finite(tensor)


def test_integers_and_empty_tensors_are_finite():
    assert is_finite(torch.arange(3)) and is_finite(torch.zeros(0, 4))


def test_the_error_names_the_tensors_and_where_they_are():
    tensors = {name: torch.tensor([float("nan")]) for name in "abcde"} | {"f": torch.ones(2)}
    assert not_finite(tensors.items()) == list("abcde")
    with pytest.raises(
        AdapterError, match=r"adapter/: NaN or infinity in a, b, c and 2 more\. .* To do: retrain"
    ):
        require_finite(tensors.items(), AdapterError, "retrain", "adapter/")
