"""Soft prompts: what methods share that put vectors in front of every row.

A prompt is a trained table, or it is computed from other trained tensors. In either case the file holds its
vectors, as PEFT's files do, and a loaded prompt is a table.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.models.auto.tokenization_auto import AutoTokenizer

from graft.core.file_layout import FileLayout
from graft.core.insert import VirtualTokens
from graft.core.method import Method, No
from graft.core.part import Part, Seats
from graft.core.positions import context_length
from graft.core.schema import Count
from graft.core.site import Site
from graft.errors import SiteError, UsageError

KEY = "/prompt_embeddings"
# What PEFT writes about the model that a prompt was made for; the tensors' shapes say the same.
SHAPES = frozenset({"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"})


@dataclass(frozen=True)
class PromptFiles(FileLayout):
    """In an encoder-decoder only the encoder gets a prompt; PEFT would keep a second one, without effect."""

    idle: frozenset[str] = SHAPES | {"tokenizer_kwargs"}
    refused: frozenset[str] = frozenset({"modules_to_save"})
    beside_model: bool = True

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        return {"num_transformer_submodules": 1, **super().describe(method, part)}


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Method):
    """Base class of methods that put vectors in front of every row: inserts with a `length`."""

    # vectors in front of every row; each takes a position of the context
    num_virtual_tokens: Count | None = 20

    kinds: ClassVar = ("prompt",)
    files: ClassVar = PromptFiles()
    newborn: ClassVar = No("vectors in front of the text are seen from the start")
    mergeable: ClassVar = No("no weight has the effect of further tokens; export it as an adapter")
    packable: ClassVar = No("every document would need virtual tokens of its own")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats = super().assemble(sites)
        if not seats:
            raise SiteError(
                "the table of this model's encoder is not to be found",
                "a model in front of whose rows vectors can be put",
                "use LoRA",
            )
        for site, insert in seats:
            if isinstance(insert, Prompt | MadePrompt):
                check_room(insert.length, site.root.config)
        return seats


class Prompt(VirtualTokens):
    """P (p, d): a trained table of vectors."""

    names: ClassVar = {"table": KEY}

    def __init__(self, table: torch.Tensor, length: int) -> None:
        """length: number of rows of the table that are put in front of the text."""
        super().__init__()
        self.table, self.length = nn.Parameter(table.detach().float().clone()), length

    def around(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.table[: self.length], self.table[:0]


class MadePrompt(VirtualTokens):
    """P = `made()`, computed from tensors that only training needs."""

    loaded: torch.Tensor | None = None

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    @abstractmethod
    def made(self) -> torch.Tensor:
        """Return the table of vectors. The first `length` of them are put in front of the text."""

    def table(self) -> torch.Tensor:
        """Return the table that is computed, or the one that a file has replaced it with."""
        return self.made() if self.loaded is None else self.loaded

    def around(self) -> tuple[torch.Tensor, torch.Tensor]:
        table = self.table()
        return table[: self.length], table[:0]

    def saved(self) -> dict[str, torch.Tensor]:
        return {KEY: self.table().detach()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the vectors of a file.

        They replace the tensors that they were computed from, which no file holds.
        """
        self.loaded = tensors[KEY].to(next(self.parameters()))


def check_sizes(**sizes: int | None) -> None:
    """Raise UsageError for a size that is not a whole number above 0. None means that it was left out."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 1):
            raise UsageError(f"{name}={size!r}", "a whole number above 0", "leave it out for a usual one")


def check_room(length: int, config: Any) -> None:
    """Raise UsageError if `length` vectors leave no position for the text (config: of transformers)."""
    limit = context_length(config)
    if limit is not None and length >= limit:
        raise UsageError(
            f"num_virtual_tokens={length}",
            f"fewer than the {limit} positions of this base",
            "10 to 100 are usual",
        )


def tokenizer(site: Site, path: str | None) -> Any:
    """Return the tokenizer in `path`, or the one in the model's folder.

    Raises UsageError if there is none.
    """
    where = path or site.root.config.name_or_path
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each tokenizer class fails in its own way
        raise UsageError(
            f"no tokenizer can be read from {where or 'the model, which was not loaded from a folder'}",
            "the tokenizer of the text that the prompt starts from",
            "set tokenizer_name_or_path to its folder",
        ) from error
