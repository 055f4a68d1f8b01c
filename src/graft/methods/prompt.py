"""Prompt tuning: trained vectors in front of the embedded text; everything else is frozen.

    E' = [P; E(x)]        P (p, d), E(x) (T, d)

Lester et al. 2021 (2104.08691). P starts from sampled entries of the vocabulary, from those of a text
(repeated or cut to p), or from N(0, 1), which PEFT has as its default and which is far larger than any word.
Learning rates are high: 1e-2 and more.
Differs: positions count live tokens, so a row's padding changes nothing (PEFT counts padding on the left as
tokens); the first token of a row is no target (PEFT predicts it from P); an encoder's head pools the first
token of the text, not the first vector of P; in an encoder-decoder only the encoder gets a prompt.
"""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar

import torch

from graft.core.insert import AdapterModule
from graft.core.part import Part
from graft.core.schema import Count, Few
from graft.core.site import Site
from graft.errors import UsageError, one_of
from graft.layers.soft_prompt import Prompt, PromptFiles, SoftPrompt, tokenizer

INITS = ("SAMPLE_VOCAB", "TEXT", "RANDOM")


class PromptTuningFiles(PromptFiles):
    """How a prompt starts is in its tensors."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        start = {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
        return super().describe(method, part) | start

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        start = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path")
        kept = {key: value for key, value in settings.items() if key not in start}
        return cls(**kept, prompt_tuning_init="RANDOM")


@dataclass(frozen=True, kw_only=True)
class PromptTuning(SoftPrompt):
    num_virtual_tokens: Count = 20  # vectors in front of every row; each takes a position of the context
    prompt_tuning_init: str = "SAMPLE_VOCAB"  # where P starts: SAMPLE_VOCAB, TEXT or RANDOM
    prompt_tuning_init_text: str | None = None  # the text that P starts from, such as the task in words
    # tokenizer of that text; if left out, the one in the model's folder
    tokenizer_name_or_path: str | None = None
    # 2 in PEFT's files for encoder-decoders: a second half of P that is idle
    num_transformer_submodules: Few = 1

    files: ClassVar = PromptTuningFiles("PROMPT_TUNING")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("prompt_tuning_init", self.prompt_tuning_init, INITS)
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise UsageError(
                f"prompt_tuning_init={self.prompt_tuning_init!r}, "
                f"prompt_tuning_init_text={self.prompt_tuning_init_text!r}",
                "a text with TEXT, and none with the others",
                "set prompt_tuning_init=TEXT and prompt_tuning_init_text to the task in words",
            )

    def build(self, site: Site) -> AdapterModule:
        rows = self.num_virtual_tokens * self.num_transformer_submodules
        return Prompt(self._start(site, rows), self.num_virtual_tokens)

    def _start(self, site: Site, rows: int) -> torch.Tensor:
        if self.prompt_tuning_init == "RANDOM":
            return torch.randn(rows, site.out_features)
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            ids = torch.randint(0, site.in_features, (rows,))
        else:
            text = tokenizer(site, self.tokenizer_name_or_path)(self.prompt_tuning_init_text)["input_ids"]
            ids = torch.tensor(list(islice(cycle(text), rows)))
        table: torch.Tensor = site.module(ids.to(site.module.weight.device))
        return table
