"""Intrinsic prompt tuning on tasks that share a subspace: how much of prompt tuning's gain do eight numbers
keep?

A tiny frozen model answers under prompts P₀ + Σ uₖDₖ, with four directions Dₖ and a random u for each task;
the task is to answer as it does. Ordinary prompts are trained on the source tasks and `find_subspace` finds
their subspace. New tasks are learnt in it, in a random subspace of the same size, and by prompt tuning. A
method's gain is the part of the distance to the task's answers (mean KL divergence on unseen inputs) that it
removes, as a share of prompt tuning's. Each method takes the best of three learning rates, chosen by the
inputs that it was trained on.

    python benchmarks/ipt.py        half a minute on one thread

Exit 1 if the subspace that was found keeps less than 95 % of the gain on average, or if the random one keeps
as much.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

sys.path.append(str(Path(__file__).parent / "common"))
import internals
import torch
from torch.nn.functional import kl_div
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import graft
from graft import IPT, PromptTuning

P, D, DIRECTIONS, D_I, HIDDEN = 6, 32, 4, 8, 64
SIZES = {
    "vocab_size": 96, "hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
SOURCES, NEW, STEPS = 16, 3, 150
RATES = {"full": (0.02, 0.05, 0.1), "found": (0.03, 0.1, 0.3), "random": (0.03, 0.1, 0.3)}
CLAIM = 0.95
Answers = tuple[torch.Tensor, torch.Tensor]
Tuning = PromptTuning | IPT


class World:
    """The frozen model, its inputs, and the tasks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.base = graft.Base(LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.1)), name="tiny")
        self.seen, self.unseen = torch.randint(0, 96, (48, 8)), torch.randint(0, 96, (64, 8))
        self.start = self.base.model.get_input_embeddings()(torch.randint(0, 96, (P,))).detach()
        self.directions = torch.randn(DIRECTIONS, P, D) * 2 * self.start.std()
        self.draws = torch.Generator().manual_seed(1)

    def tasks(self, count: int) -> Iterator[Answers]:
        """Yield the log probabilities to learn, and those to be judged by."""
        for _ in range(count):
            u = torch.randn(DIRECTIONS, generator=self.draws)
            prompt = self.start + torch.tensordot(u, self.directions, 1)
            self.base.attach("teacher", PromptTuning(num_virtual_tokens=P)).load_file_state(
                {"prompt_embeddings": prompt}
            )
            with torch.no_grad():
                answers = self.answers("teacher", self.seen), self.answers("teacher", self.unseen)
            self.base.detach("teacher")
            yield answers

    def answers(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        with self.base.using(name):
            return self.base(ids, use_cache=False).logits.log_softmax(-1)

    def distance(self, name: str, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return kl_div(self.answers(name, ids), wanted, log_target=True, reduction="sum") / ids.numel()

    def learn(
        self, method: Tuning, task: Answers, lr: float, steps: int = STEPS
    ) -> tuple[float, float, torch.Tensor]:
        """Train from P₀, or in the subspace that was found from the mean of the sources' prompts.

        Return the distance on the inputs it saw, the distance on unseen ones, and the prompt.
        """
        adapter = self.base.attach("x", method)
        if isinstance(method, PromptTuning):
            adapter.load_file_state({"prompt_embeddings": self.start})
        elif method.subspace is None:
            adapter.inserts[0][1].b2.copy_(self.start)
        optimizer = torch.optim.Adam(adapter.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            self.distance("x", self.seen, task[0]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            seen = float(self.distance("x", self.seen, task[0]))
            unseen = float(self.distance("x", self.unseen, task[1]))
        self.base.detach("x")
        return seen, unseen, adapter.file_state()["prompt_embeddings"].clone()

    def gain(self, method: Tuning, task: Answers, rates: Sequence[float]) -> float:
        """Return how much of the distance on unseen inputs is removed."""
        at_start = self.learn(PromptTuning(num_virtual_tokens=P), task, 0.0, steps=0)[1]
        return at_start - min(self.learn(method, task, lr)[:2] for lr in rates)[1]


def shares() -> list[dict[str, float]]:
    """Return for each new task the share of prompt tuning's gain, in the found and in a random subspace."""
    world = World()
    prompts = [
        world.learn(PromptTuning(num_virtual_tokens=P), task, 0.05)[2] for task in world.tasks(SOURCES)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "subspace.safetensors"
        internals.find_subspace(prompts, path, D_I, hidden_size=HIDDEN)
        methods = {
            "full": PromptTuning(num_virtual_tokens=P),
            "found": IPT(subspace=str(path)),
            "random": IPT(num_virtual_tokens=P, intrinsic_dim=D_I, hidden_size=HIDDEN),
        }
        for task in world.tasks(NEW):
            gains = {name: world.gain(method, task, RATES[name]) for name, method in methods.items()}
            rows.append({name: gains[name] / gains["full"] for name in ("found", "random")})
    return rows


def main() -> int:
    torch.set_num_threads(1)
    print(f"share of prompt tuning's gain ({P * D} numbers) with {D_I} numbers, on tasks new to the subspace")
    rows = shares()
    rows.append({name: mean(row[name] for row in rows) for name in rows[0]})
    for label, row in zip([*(f"task {i + 1}" for i in range(NEW)), "mean"], rows, strict=True):
        print(f"{label:<8} subspace found {row['found']:6.1%}   random subspace {row['random']:6.1%}")
    return 0 if rows[-1]["random"] < CLAIM <= rows[-1]["found"] else 1


if __name__ == "__main__":
    sys.exit(main())
