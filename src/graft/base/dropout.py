"""Turn off the model's own dropout, so that the frozen part is deterministic while adapters train.

Checkpointing needs `training=True` on transformers' blocks, and some of them (OPT) switch dropout by that
same flag. So the flag stays, and the probabilities are set to zero and put back afterwards.
"""

from collections.abc import Iterator

from torch import nn


class SilentDropout:
    """Set every dropout probability of a model to zero, and back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[nn.Module, str, float]] = []

    def on(self) -> None:
        """Set `p` of Dropout modules, and every float attribute that is named after dropout, to zero."""
        if not self._kept:
            self._kept = list(self._places())
        for module, name, _ in self._kept:
            setattr(module, name, 0.0)

    def found(self) -> bool:
        """Return whether the model has any dropout, on or off."""
        return bool(self._kept) or any(True for _ in self._places())

    def _places(self) -> Iterator[tuple[nn.Module, str, float]]:
        """Yield every probability above 0 with its module and its name there."""
        for module in self._model.modules():
            for name, value in list(vars(module).items()):
                named = "drop" in name.lower() or (
                    name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)
                )
                if named and isinstance(value, float) and value:
                    yield module, name, value

    def off(self) -> None:
        """Put every probability back."""
        for module, name, value in self._kept:
            setattr(module, name, value)
        self._kept.clear()
