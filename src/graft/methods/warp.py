"""WARP: trained vectors around the text turn a masked model into a classifier (adversarial reprogramming).

    E' = [P₁; E(x); P₂; E([MASK]); P₃]        P = [P₁; P₂; P₃] (K, d): trained vectors
    P(y | x) = softmax_y(h · v_y)             v (C, d): a trained vector for each class
                                              h: what the word head makes of the state at [MASK], before its
                                              table of words

Hambardzumyan et al. 2021 (2101.00121). P starts as copies of E([MASK]); v at random, or from words that name
the classes. Learning rates are near 1e-3; everything but P and v is frozen, the word head too.
Differs: the vectors stand around the whole row, its special tokens included, and not between two sentences.
Decoders have no [MASK] and read the last vector of P; encoder-decoders read the decoder's first state. Their
P starts from N(mean, variance) of the vocabulary. So does that of a masked model if no tokenizer says which
token is [MASK].
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.anatomy import family
from graft.core.file_layout import FileLayout
from graft.core.insert import AdapterModule, Head, VirtualTokens
from graft.core.method import Method, No
from graft.core.part import Part
from graft.core.schema import Amount, Count, Names
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.soft_prompt import KEY, check_room, tokenizer

MASKED = ("masked", "encoder")
NONE = -1  # mask_token_id of what has no [MASK]


class WARPFiles(FileLayout):
    """[MASK] by its number, and v is in the tensors: a file needs no tokenizer, and none is read for it."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        ((_, around),) = part.of(Around)
        start = {"mask_token_id": around.mask, "label_words": [], "tokenizer_name_or_path": None}
        return super().describe(method, part) | start

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        words = ("label_words", "tokenizer_name_or_path")
        return cls(**{key: value for key, value in settings.items() if key not in words})


@dataclass(frozen=True, kw_only=True)
class WARP(Method):
    before_text: Amount = 10  # vectors in front of the row
    before_mask: Amount = 5  # vectors between the row and [MASK]
    after_mask: Amount = 5  # vectors after [MASK]
    num_labels: Count = 2  # classes; as many as there are names in labels, where these are given
    labels: Names = ()  # names of the classes, in order
    # a word for each class, that its vector starts from; if left out, vectors start at random
    label_words: Names = ()
    # id of [MASK]: the tokenizer's where left out; -1: the last vector is read
    mask_token_id: int | None = None
    # tokenizer of words and [MASK]; if left out, the one in the model's folder
    tokenizer_name_or_path: str | None = None

    kinds: ClassVar = ("prompt", "final")
    files: ClassVar = WARPFiles("GRAFT_WARP")
    word_head: ClassVar = True
    every_token: ClassVar = False
    newborn: ClassVar = No("it answers with classes instead of tokens")
    mergeable: ClassVar = No("no weight has the effect of further tokens")
    packable: ClassVar = No("every document would need virtual tokens of its own")

    def __post_init__(self) -> None:
        if self.labels:
            object.__setattr__(self, "num_labels", len(self.labels))
        if not self.before_mask + self.after_mask:
            raise UsageError(
                "before_mask=0 and after_mask=0", "1 vector after the text", "leave these settings out"
            )
        if self.label_words and len(self.label_words) != self.num_labels:
            raise UsageError(
                f"{len(self.label_words)} label_words for {self.num_labels} classes",
                "a word for each class, in their order",
                "leave label_words out to start at random",
            )

    def build(self, site: Site) -> AdapterModule:
        return self._around(site) if site.kind == "prompt" else Verbalizer(self._classes(site))

    def notice(self, part: Part) -> str | None:
        ((site, around),) = part.of(Around)
        wanted = self.mask_token_id is None and family(site.root) in MASKED
        missing = wanted and around.mask == NONE
        return "no tokenizer says which token is [MASK]: the last vector is read instead" if missing else None

    def _around(self, site: Site) -> AdapterModule:
        parts, model = (self.before_text, self.before_mask, self.after_mask), site.root
        mask = self._mask(site) if self.mask_token_id is None else self.mask_token_id
        check_room(sum(parts) + (mask != NONE), model.config)
        insert = Around(*self._start(site, sum(parts), mask), parts, mask)
        if family(model) != "seq2seq":
            insert.reads = self.before_mask + self.after_mask - 1 if mask == NONE else self.before_mask
        return insert

    def _mask(self, site: Site) -> int:
        """Return the id of [MASK] from the tokenizer of a masked model; NONE if there is none."""
        if family(site.root) not in MASKED:
            return NONE
        try:
            known = tokenizer(site, self.tokenizer_name_or_path).mask_token_id
        except UsageError:
            return NONE
        return NONE if known is None else int(known)

    def _start(self, site: Site, rows: int, mask: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return P at birth, and the vector of [MASK] (1, d), or (0, d)."""

        def embed(ids: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = site.module(ids.to(site.module.weight.device)).float()
            return vectors

        if mask >= site.in_features:
            raise UsageError(f"mask_token_id={mask}", f"an id below {site.in_features}", "leave it out")
        if mask != NONE:
            vector = embed(torch.tensor([mask]))
            return vector.expand(rows, -1), vector
        words = embed(torch.randint(0, site.in_features, (4096,)))  # enough for mean and variance
        return words.mean(0) + words.std(0) * torch.randn(rows, site.out_features).to(words), words[:0]

    def _classes(self, site: Site) -> torch.Tensor:
        """Return v at birth, as wide as what enters the table of words."""
        head = site.root.get_output_embeddings()
        if not self.label_words:
            width = site.in_features if head is None else head.weight.shape[1]
            return torch.randn(self.num_labels, width) * 0.02
        if head is None:
            raise UsageError(
                "label_words on a model without a word head", "a masked model", "leave label_words out"
            )
        read = tokenizer(site, self.tokenizer_name_or_path)
        ids = (read(word, add_special_tokens=False)["input_ids"] for word in self.label_words)
        return torch.stack([head.weight[tokens].float().mean(0) for tokens in ids])


class Around(VirtualTokens):
    """P, and among it the frozen vector of [MASK], where there is one."""

    names: ClassVar = {"table": KEY}
    vector: torch.Tensor

    def __init__(
        self, table: torch.Tensor, vector: torch.Tensor, parts: tuple[int, int, int], mask: int
    ) -> None:
        """parts: how many rows of the table are put before the text, before [MASK] and after it."""
        super().__init__()
        self.parts, self.mask = parts, mask
        self.table = nn.Parameter(table.detach().clone())
        self.register_buffer("vector", vector.detach(), persistent=False)

    def around(self) -> tuple[torch.Tensor, torch.Tensor]:
        front, middle, end = self.table.split(self.parts)
        return front, torch.cat([middle, self.vector, end])


class Verbalizer(Head):
    """v. The state that is read stands first among the last hidden states. Logits are (B, C)."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.v = nn.Parameter(start.detach().clone())

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.linear(states[:, 0].float(), self.v)
