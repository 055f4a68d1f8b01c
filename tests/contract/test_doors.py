"""A method that uses every door is trained by the loop and saved: each door is opened when it should be."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from broken import Scale, Sound
from stage_tools import feed_of
from torch.testing import assert_close

from graft.core import registry
from graft.core.file_layout import FileLayout
from graft.core.method import No
from graft.data.encode import Example
from graft.formats import peft
from graft.objectives.lm import language_modelling
from graft.recipe import Train
from graft.training import Task, Trainer
from models import tiny_base

CALLS: list[tuple[str, object]] = []


class Helped(Scale):
    """y·(1 + g·helper). The helper is trained and never saved, like the network of prefix tuning."""

    def __init__(self, width):
        super().__init__(width)
        self.helper = torch.nn.Parameter(torch.ones(width))

    def forward(self, x, y):
        return y * (1 + (self.g * self.helper).to(y.dtype))

    def saved(self):
        return {"g": (self.g * self.helper).detach()}


@dataclass(frozen=True)
class EveryDoor(Sound):
    weight: float = 0.5  # of the extra loss

    files: ClassVar = FileLayout("EVERY_DOOR")
    mergeable: ClassVar = No("so that a reason is shown")
    passes: ClassVar = 2

    def build(self, site):
        return Helped(site.out_features)

    def param_groups(self, part, lr):
        named = dict(part.named_parameters())
        helpers = [p for n, p in named.items() if n.endswith("helper")]
        return [
            {"params": helpers, "lr": 0.0},
            {"params": [p for n, p in named.items() if n.endswith(".g")], "lr": lr},
        ]

    def extra_loss(self, part, outputs):
        CALLS.append(("extra_loss", len(outputs)))
        return self.weight * (outputs[0] - outputs[1]).square()

    def after_step(self, part, step, total):
        CALLS.append(("after_step", (step, total)))


def test_every_door_is_used_by_the_loop_and_the_saver(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "find", lambda name: EveryDoor)
    monkeypatch.setattr(registry, "names", lambda: ["every_door"])
    CALLS.clear()
    base = tiny_base()
    adapter = base.attach("x", EveryDoor())
    ids = torch.randint(4, 90, (6, 9), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(row, row, f"rows:{n}") for n, row in enumerate(ids)]
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2, mask_token_id=None)
    feed = feed_of(
        examples, tokenizer, batch_size=3, micro_batch_size=3, max_length=32, pack=True, seed=0, stage="sft"
    )
    Trainer(
        base, "x", Task(feed, language_modelling), Train(max_steps=3, lr=1e-2, warmup=0.0), tmp_path
    ).run()

    # one call before step 1: the dry run of the longest batch
    assert [given for name, given in CALLS if name == "extra_loss"] == [2, 2, 2, 2]
    assert [given for name, given in CALLS if name == "after_step"] == [(1, 3), (2, 3), (3, 3)]
    helpers = [p for n, p in adapter.named_parameters() if n.endswith("helper")]
    assert all(torch.equal(p, torch.ones_like(p)) for p in helpers), (
        "its group's learning rate of 0 was overlooked"
    )
    with peft.safe_open(tmp_path / "adapter" / peft.WEIGHTS, "pt") as file:
        saved = {key: file.get_tensor(key) for key in list(file.keys())}
    assert len(saved) == len(adapter.inserts) and not any("helper" in key for key in saved)
    for site, insert in adapter.inserts:
        assert insert.g.abs().sum() > 0
        assert_close(saved[f"base_model.model.{site.name}.g"], (insert.g * insert.helper).detach())
