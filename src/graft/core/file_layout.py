"""File layout: what an adapter's files say about a method, and which method the settings of a file mean.

For most methods a layout is plain data. A method whose files say something other than its settings derives a
layout and overrides `describe` or `understand`, so that the method itself knows nothing about formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graft.core.part import Part
from graft.core.site import Site

Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FileLayout:
    """The files of one method.

    peft_type: the type that the files name.
    own: settings that PEFT does not know. They are kept in the metadata, not in PEFT's config.
    idle: keys of PEFT's config that have no effect once an adapter is trained.
    refused: keys of PEFT's config that change what an adapter answers, and that this method has not.
    absent: what PEFT takes for settings that a file leaves out, where it is not this method's own default.
    marks: settings in PEFT's config that identify a file as this method's, whatever type it names.
    library_marks: the same for a file of the `adapters` library.
    beside_model: PEFT stores this method outside the model, so its file keys start with `base_model.`, not
    `base_model.model.`.
    """

    peft_type: str = ""
    own: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    absent: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, Any] = field(default_factory=dict)
    library_marks: Mapping[str, Any] = field(default_factory=dict)
    beside_model: bool = False

    @property
    def root(self) -> str:
        """What the keys of this method's tensors start with."""
        return "base_model" if self.beside_model else "base_model.model"

    def describe(self, method: Any, part: Part) -> Settings:
        """Return what `adapter_config.json` says about a method that built `part`.

        How it is trained is left out: its learning rate, and what PEFT does not know.
        """
        return {name: value for name, value in method.config().items() if name not in {"lr", *self.own}}

    def own_settings(self, method: Any) -> Settings:
        """Return the settings of a method that PEFT does not know."""
        return {name: method.config()[name] for name in self.own}

    def understand(self, cls: Any, settings: Settings) -> Any:
        """Return the method of class `cls` that a file describes.  settings: fields of that class only."""
        return cls(**settings)

    def understand_library(self, cls: Any, settings: Settings, sites: Sequence[Site]) -> Any:
        """Return the method that a file of the `adapters` library describes, on a base with these sites."""
        return self.understand(cls, settings)

    def convert(self, config: Settings, tensors: Tensors, sites: Sequence[Site]) -> tuple[Settings, Tensors]:
        """Return config and tensors of another convention's file as this method would have written them.

        sites: those of the base that the file is read for.
        """
        return config, tensors

    def is_marked(self, config: Settings) -> bool:
        """Return whether a config of PEFT bears this method's marks."""
        return bool(self.marks) and all(config.get(key) == value for key, value in self.marks.items())

    def is_marked_by_library(self, settings: Settings) -> bool:
        """Return whether settings of the `adapters` library bear this method's marks.

        A setting that is missing counts as False.
        """
        return bool(self.library_marks) and all(
            settings.get(key, False) == value for key, value in self.library_marks.items()
        )
