"""Turn off the model's own dropout, so that the frozen part is deterministic while adapters train.

Checkpointing needs `training=True` on transformers' blocks, and some of them (OPT) switch dropout by that
same flag. So the flag stays, and the probabilities are set to zero and put back afterwards.
"""

from torch import nn


class SilentDropout:
    """Set every dropout probability of a model to zero, and back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[nn.Module, str, float]] = []

    def on(self) -> None:
        """Set `p` of Dropout modules, and every float attribute that is named after dropout, to zero."""
        if self._kept:
            return
        for module in self._model.modules():
            for name, value in list(vars(module).items()):
                named = "drop" in name.lower() or (
                    name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)
                )
                if named and isinstance(value, float) and value:
                    self._kept.append((module, name, value))
                    setattr(module, name, 0.0)

    def off(self) -> None:
        """Put every probability back."""
        for module, name, value in self._kept:
            setattr(module, name, value)
        self._kept.clear()
