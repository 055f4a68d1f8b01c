"""P-tuning: virtual tokens that an encoder makes of a trained table.

    E' = [P; E(x)]        P (p, d)
    MLP:   P = W₃ relu(W₂ relu(W₁H))                  H (p, d); W₁ to m, W₂ m to m, W₃ to d; each with a bias
    LSTM:  P = W₂ relu(W₁ BiLSTM(H))                  BiLSTM of m in each direction; W₁ 2m to 2m, W₂ to d

Liu et al. 2021, "GPT Understands, Too" (2103.10385). The encoder ties the virtual tokens together and
steadies training. It is dropped when the adapter is saved, so a loaded adapter is one of prompt tuning.
Differs: the vectors are in front of the text, as in PEFT, not between literal words of a template.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.insert import AdapterModule
from graft.core.part import Part
from graft.core.schema import Count, Few, Share
from graft.core.site import Site
from graft.errors import one_of
from graft.layers.soft_prompt import MadePrompt, PromptFiles, SoftPrompt
from graft.methods.prompt import PromptTuning

ENCODERS = ("MLP", "LSTM")
LASTING = ("num_virtual_tokens", "num_transformer_submodules")  # settings that outlive the encoder


class PTuningFiles(PromptFiles):
    """A file is understood as a prompt: its encoder is dropped."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        ((_, prompt),) = part.of(EncodedPrompt)
        return super().describe(method, part) | {"encoder_hidden_size": prompt.width}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        kept = {key: settings[key] for key in LASTING if key in settings}
        return PromptTuning.files.understand(PromptTuning, kept)


@dataclass(frozen=True, kw_only=True)
class PTuning(SoftPrompt):
    num_virtual_tokens: Count = 20  # vectors in front of every row; each takes a position of the context
    encoder_reparameterization_type: str = "MLP"  # what makes the vectors: MLP or LSTM
    encoder_hidden_size: Count | None = None  # m: width of the encoder; the model's where left out
    encoder_num_layers: Few = 2  # layers of the LSTM; an MLP has three
    encoder_dropout: Share = 0.0  # dropout between the layers of the LSTM
    # 2 in PEFT's files for encoder-decoders: a second half of P that is idle
    num_transformer_submodules: Few = 1

    files: ClassVar = PTuningFiles("P_TUNING")

    def __post_init__(self) -> None:
        one_of("encoder_reparameterization_type", self.encoder_reparameterization_type, ENCODERS)

    def build(self, site: Site) -> AdapterModule:
        return EncodedPrompt(site.out_features, self)


class EncodedPrompt(MadePrompt):
    """The table H and its encoder, whose parts are named as in PEFT."""

    def __init__(self, d: int, config: PTuning) -> None:
        super().__init__(config.num_virtual_tokens)
        self.width = m = config.encoder_hidden_size or d
        self.embedding = nn.Embedding(config.num_virtual_tokens * config.num_transformer_submodules, d)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder_reparameterization_type == "MLP":
            layers = [nn.Linear(d, m), nn.ReLU(), nn.Linear(m, m), nn.ReLU(), nn.Linear(m, d)]
        else:
            depth, dropout = config.encoder_num_layers, config.encoder_dropout
            self.lstm_head = nn.LSTM(d, m, depth, dropout=dropout, bidirectional=True, batch_first=True)
            layers = [nn.Linear(2 * m, 2 * m), nn.ReLU(), nn.Linear(2 * m, d)]
        self.mlp_head = nn.Sequential(*layers)

    def made(self) -> torch.Tensor:
        H = self.embedding.weight
        return self.mlp_head(H if self.lstm_head is None else self.lstm_head(H[None])[0][0])
