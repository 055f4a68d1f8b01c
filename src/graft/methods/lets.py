"""LeTS: a classifier reads the activations of all blocks of a shared trunk; few weights differ between tasks.

    a_l = LN(pool(h_l))        z_l = σ((γ_l + ε)/τ), ε logistic noise;  after training 1 where γ_l > 0, else 0
    u = BiLSTM(z_0 a_0, .., z_L a_L)        logits = W·u + b
    y = (W₀ + M ⊙ D) x + b₀ in the last blocks: see `layers.delta`
    h_l (T, d) state after block l, h_0 embeddings;  LN has no weights;  γ_l = 2 at birth
    u (d/2,) last states of both directions, d/4 wide each;  W (classes, d/2)

Nothing below the first delta is trained, so the trunk up to there runs without gradient. If there are no
deltas, one forward of the trunk serves the classifiers of all tasks (`share`). The BiLSTM has 2.5 d² + 4 d
numbers, 1.35 % of BERT-base.

Fu et al., ICML 2021, "Learn-to-Share". Reconstructed from its abstract, without code: pooling, LN, gates, the
form of the classifier and the starts are ours. In an encoder-decoder the encoder is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.method import No
from graft.core.part import Part, Seats
from graft.core.schema import Amount, Portion, Positive, Share
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.delta import Delta
from graft.layers.taps import Tap, stacks
from graft.methods.task_head import Classifier, HeadFiles, TaskHead


@dataclass(frozen=True, kw_only=True)
class LeTS(TaskHead):
    # last blocks in which weights differ by task; 0: none, the trunk is the same for all
    delta_layers: Amount = 2
    delta_density: Portion = 0.005  # share of their weights that differ
    choose_at: Share = 0.1  # share of the steps after which those weights are chosen
    tau_start: Positive = 1.0  # temperature of the gates at first
    tau_end: Positive = 0.1  # and in the end

    files: ClassVar = HeadFiles(
        "GRAFT_LETS",
        own=TaskHead.files.own | {"delta_layers", "delta_density", "choose_at", "tau_start", "tau_end"},
    )
    mergeable: ClassVar = No("its classifier stays outside the base")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool == "none":
            raise UsageError("pool='none'", "a pool of rows", "see `graft methods lets`")
        if self.tau_end > self.tau_start:
            raise UsageError(
                f"tau_start={self.tau_start}, tau_end={self.tau_end}",
                "a temperature that does not rise",
                "leave them out",
            )

    def assemble(self, sites: Sequence[Site]) -> Seats:
        (_, blocks), final = stacks(sites)[0], sites[-1]
        decoder = len(stacks(sites)) == 1 and final.name == "score"
        pool = ("last" if decoder else "mean") if self.pool == "auto" else self.pool
        taps = [*(Tap() for _ in blocks), Behind()]
        top = blocks[max(0, len(blocks) - self.delta_layers) :]
        prefixes = tuple(f"{block.name}." for block in top)
        linears = [site for site in sites if site.kind == "linear" and site.name.startswith(prefixes)]
        return [
            *((site, Delta(site, self.delta_density)) for site in linears),
            *zip([*blocks, blocks[-1]], taps, strict=True),
            (final, self._readout(taps, final.in_features, pool)),
        ]

    def _readout(self, taps: Sequence[Tap], width: int, pool: str) -> "Readout":
        return Readout(taps, width, self.num_labels, pool, self.tau_start, self.spread(width // 4 * 2))

    def after_step(self, part: Part, step: int, total: int) -> None:
        """Lower the temperature of the gates.

        At one step choose the weights that differ, by their gradients.
        """
        choice = max(2, round(self.choose_at * total))
        for _, readout in part.of(Readout):
            readout.tau.fill_(self.tau_start * (self.tau_end / self.tau_start) ** (step / total))
        for _, delta in part.of(Delta):
            if step == choice - 1:
                delta.watch()
            elif step == choice:
                delta.choose()


class Behind(Tap):
    """Leaves what leaves its block."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.leave(y)
        return y


class Readout(Classifier):
    """Logits (B, classes) of what the taps left."""

    tau: torch.Tensor

    def __init__(
        self, taps: Sequence[Tap], width: int, classes: int, pool: str, tau: float, std: float
    ) -> None:
        super().__init__(width // 4 * 2, classes, pool, bias=True, std=std)
        self.taps = tuple(taps)  # not as modules: each is an insert of its own
        self.gates = nn.Parameter(torch.full((len(taps),), 2.0))
        self.lstm = nn.LSTM(width, width // 4, batch_first=True, bidirectional=True)
        self.register_buffer("tau", torch.tensor(tau))

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.read([tap.left() for tap in self.taps], mask)

    def read(self, states: Sequence[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
        """Return logits from h_0 .. h_L, each (B, T, d)."""
        live = torch.ones_like(states[0][..., 0]) if mask is None else mask.to(states[0].device)
        pooled = torch.stack([self._pooled(state.float(), live.float()) for state in states], 1)
        gated = self._open()[:, None] * F.layer_norm(pooled, pooled.shape[-1:])
        _, (last, _) = self.lstm(gated)
        return F.linear(torch.cat([last[0], last[1]], -1), self.weight, self.bias)

    def _open(self) -> torch.Tensor:
        """Return z (L+1,)."""
        if not self.training:
            return (self.gates > 0).float()
        noise = torch.rand_like(self.gates).clamp(1e-6, 1 - 1e-6).logit()
        return torch.sigmoid((self.gates + noise) / self.tau)


def share(base: Any, names: Sequence[str], ids: torch.Tensor, **keywords: Any) -> dict[str, torch.Tensor]:
    """Run the trunk once for several LeTS adapters without deltas, and return {name: logits}.

    base: the Base that the adapters are on.  ids: (B, T), the same rows for all.  keywords: transformers'
    own.
    """
    inserts = {
        name: [i for _, i in base.adapters[name].inserts] if name in base.adapters else [] for name in names
    }
    unfit = [name for name, seated in inserts.items() if {type(i) for i in seated} != {Tap, Behind, Readout}]
    if unfit or not names:
        given = f"{', '.join(unfit) or 'no adapter'} on a shared trunk"
        raise UsageError(
            given, "adapters of LeTS alone, with delta_layers=0", "answer its rows by themselves"
        )
    readouts = {name: seated[-1] for name, seated in inserts.items()}
    logits: dict[str, torch.Tensor] = {}

    def answer_all(first: Readout, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        states = [tap.left() for tap in first.taps]
        logits.update({name: readout.read(states, args[1]) for name, readout in readouts.items()})

    handle = readouts[names[0]].register_forward_hook(answer_all)
    try:
        with base.using(names[0]):
            base(ids, **keywords)
    finally:
        handle.remove()
    return logits
