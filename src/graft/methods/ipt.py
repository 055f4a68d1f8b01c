"""Intrinsic prompt tuning: train the coordinates of a prompt in a small subspace that tasks share.

    P = W₂ tanh(W₁z + b₁) + b₂        z (d_I,) trained; W₁ (h, d_I), W₂ (p·d, h), b₁, b₂ frozen

Qin et al. 2021 (2110.07867). Stage 1 (`find_subspace`) makes the decoder from prompts trained on other tasks;
stage 2, this method, trains z on a new one. The file holds P, as prompt tuning's does, and needs no decoder.
Differs: without a subspace the decoder is random and centred on sampled words, which is what the paper
compares with. The claim of "5 trained numbers" leaves out the decoder of stage 1: 59 M frozen numbers for p·d
= 76,800.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from graft.core.insert import AdapterModule
from graft.core.part import Part
from graft.core.schema import Count
from graft.core.site import Site
from graft.errors import AdapterError
from graft.layers.soft_prompt import MadePrompt, PromptFiles, SoftPrompt
from graft.layers.task_subspace import find_subspace
from graft.methods.prompt import PromptTuning

__all__ = ["IPT", "find_subspace"]
RANDOM = {"num_virtual_tokens": 20, "intrinsic_dim": 5}  # sizes where no subspace has them


class IPTFiles(PromptFiles):
    """The files of prompt tuning: what is saved is a prompt."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        ((_, insert),) = part.of(Intrinsic)
        remains = PromptTuning(num_virtual_tokens=insert.length, prompt_tuning_init="RANDOM")
        return remains.files.describe(remains, part) | {"peft_type": remains.files.peft_type}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        raise AdapterError("a file of IPT itself", "the prompt that it is saved as", "save the adapter again")


@dataclass(frozen=True, kw_only=True)
class IPT(SoftPrompt):
    num_virtual_tokens: Count | None = None  # p: that of the subspace; 20 in a random one
    # d_I, how many numbers are trained: that of the subspace; 5 in a random one
    intrinsic_dim: Count | None = None
    subspace: str | None = None  # file that find_subspace wrote; a random decoder where left out
    hidden_size: Count = 768  # h: width of a random decoder
    seed: int = 0  # of a random decoder

    files: ClassVar = IPTFiles(
        "GRAFT_IPT", own=frozenset({"intrinsic_dim", "subspace", "hidden_size", "seed"})
    )

    def build(self, site: Site) -> AdapterModule:
        return Intrinsic(self._random(site) if self.subspace is None else self._from_file(site))

    def _random(self, site: Site) -> dict[str, torch.Tensor]:
        """Return a decoder drawn from the seed: sampled words at z = 0, and steps of their size around it."""
        p, d_i = (getattr(self, name) or size for name, size in RANDOM.items())
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cpu")

        module, device = site.module, site.module.weight.device
        ids = torch.randint(0, site.in_features, (p,), generator=generator, device="cpu")
        words = module(ids.to(device)).float()
        W1, W2 = normal(self.hidden_size, d_i) / d_i**0.5, normal(words.numel(), self.hidden_size)
        W2 = W2.to(device) * (words.std() / self.hidden_size**0.5)
        return {"z": torch.zeros(d_i), "W1": W1, "b1": torch.zeros(self.hidden_size), "W2": W2, "b2": words}

    def _from_file(self, site: Site) -> dict[str, torch.Tensor]:
        """Return the decoder of a file. Raises AdapterError if it is for another model or for other sizes."""
        path = Path(str(self.subspace))
        try:
            tensors = load_file(path)
            sizes = {"num_virtual_tokens": len(tensors["b2"]), "intrinsic_dim": len(tensors["z"])}
            width = tensors["b2"].shape[1]
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise AdapterError(
                f"{path} is not a subspace of prompts", "a file that find_subspace wrote", "check the path"
            ) from error
        wrong = [f"{k}={v}" for k, v in sizes.items() if getattr(self, k) not in (None, v)]
        if wrong or width != site.out_features:
            raise AdapterError(
                f"{path} holds prompts of {sizes['num_virtual_tokens']} vectors of width {width}, "
                f"in a subspace of {sizes['intrinsic_dim']} dimensions",
                f"the sizes that are set, and the model's width of {site.out_features}",
                "leave num_virtual_tokens and intrinsic_dim out, and load the model of these prompts",
            )
        return tensors


class Intrinsic(MadePrompt):
    """z and its frozen decoder, which files and checkpoints leave out."""

    W1: torch.Tensor
    b1: torch.Tensor
    W2: torch.Tensor
    b2: torch.Tensor

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(len(tensors["b2"]))
        self.z = nn.Parameter(tensors["z"].float().clone())
        for name in ("W1", "b1", "W2", "b2"):
            self.register_buffer(name, tensors[name].detach().float(), persistent=False)

    def made(self) -> torch.Tensor:
        return (self.W2 @ torch.tanh(self.W1 @ self.z + self.b1)).view_as(self.b2) + self.b2
