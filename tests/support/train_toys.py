"""A language model of two tensors with the doors that the loop uses, which trains in milliseconds.

h = E[ids] (1 + W)      dropped out in training;      logits = h Eᵀ + b
"""

import contextlib
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from graft import storage
from graft.data.feed import Source
from graft.errors import GraftError
from graft.recipe import Train
from graft.training import Task, Trainer

VOCABULARY, WIDTH = 23, 8


@dataclass
class Batch:
    inputs: dict
    labels: torch.Tensor
    tokens: int
    sources: list

    def to(self, device):
        return self


class Adapter:
    """W and b, trained; a frozen random tensor rides along."""

    name = "toy"
    passes = 1
    consistency = 0.0
    methods = ()
    inserts = ()

    def __init__(self, seed=0, dtype=torch.float32, width=WIDTH):
        generator = torch.Generator().manual_seed(seed)
        self.W = torch.nn.Parameter((torch.randn(width, width, generator=generator) * 0.1).to(dtype))
        self.b = torch.nn.Parameter(torch.zeros(VOCABULARY, dtype=dtype))
        self.frozen = torch.randn(3, generator=generator)
        self.steps_seen = []

    def named_parameters(self):
        yield from {"W": self.W, "b": self.b}.items()

    def parameters(self):
        return [self.W, self.b]

    def count(self):
        return sum(p.numel() for p in self.parameters())

    def param_groups(self, lr):
        return [{"params": [self.W], "lr": lr}, {"params": [self.b], "lr": 2 * lr, "weight_decay": 0.0}]

    def extra_loss(self, losses):
        return None

    def after_step(self, step, total):
        self.steps_seen.append(step)

    def checkpoint_state(self):
        return {"W": self.W.detach(), "b": self.b.detach(), "frozen": self.frozen}

    def restore_checkpoint_state(self, tensors):
        for name, tensor in self.checkpoint_state().items():
            tensor.copy_(tensors[name])

    def file_state(self):
        return {"W": self.W.detach(), "b": self.b.detach()}

    def save(self, folder):
        save_file(self.file_state(), Path(folder) / "adapter_model.safetensors")


class Base:
    """The frozen part, and which adapter is in use."""

    device = torch.device("cpu")

    def __init__(self, adapter, dropout=0.1):
        self.adapters = {adapter.name: adapter}
        self.dtype = adapter.W.dtype
        self.dropout = dropout
        self.training = False
        self.checkpointed = []
        self.model = torch.nn.Module()
        self.model.embeddings = torch.nn.Embedding(VOCABULARY, len(adapter.W))
        with torch.no_grad():
            values = torch.randn(VOCABULARY, len(adapter.W), generator=torch.Generator().manual_seed(1))
            self.model.embeddings.weight.copy_(values)
        self.model.get_input_embeddings = self._input_embeddings
        self.model.to(self.dtype).requires_grad_(False)

    def _input_embeddings(self):
        return self.model.embeddings

    @contextlib.contextmanager
    def using(self, name):
        self.active = self.adapters[name]
        yield

    def train(self, mode=True, *, dropout=False, noise=True):
        self.training = mode and noise

    def checkpointing(self, on=True):
        self.checkpointed.append(on)

    def count(self):
        return sum(p.numel() for p in self.model.parameters())

    def logits(self, ids):
        x = self.model.embeddings(ids)
        h = x + x @ self.active.W
        h = torch.nn.functional.dropout(h, self.dropout, self.training)
        return h @ self.model.embeddings.weight.T + self.active.b


def objective(base, batch):
    logits = base.logits(batch.inputs["input_ids"])[:, :-1]
    labels = batch.labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    correct = (logits.argmax(-1) == labels).sum()
    return loss, {"tokens": float(batch.tokens), "correct": float(correct)}


class Feed(Source):
    """Rows of uneven length, four per step; step(epoch, index) is a pure function."""

    def __init__(self, seed=0, steps_per_epoch=6, rows=4, micro=2):
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.rows = rows
        self.micro = micro

    def step(self, epoch, index):
        generator = torch.Generator().manual_seed(self.seed + 1000 * epoch + index)
        rows = []
        for i in range(self.rows):
            length = int(torch.randint(3, 12, (), generator=generator))
            start = int(torch.randint(VOCABULARY, (), generator=generator))
            rows.append(
                (f"toy.jsonl:{100 * index + i}", [(start + 3 * t) % VOCABULARY for t in range(length)])
            )
        return [collate(rows[i : i + self.micro]) for i in range(0, self.rows, self.micro)]

    def longest(self):
        return max(self.step(0, 0), key=lambda batch: batch.labels.numel())


def collate(rows):
    longest = max(len(ids) for _, ids in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows])
    labels = torch.tensor([ids + [-100] * (longest - len(ids)) for _, ids in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Batch(inputs, labels, int((labels[:, 1:] != -100).sum()), [source for source, _ in rows])


def settings(**keys):
    return Train(**{"epochs": 2, "lr": 0.05, "save_every": 3, "eval_every": 4, "neftune_alpha": 2.0, **keys})


def evaluation(base):
    """Return an evaluation of the loss on a held-out step. It draws random numbers, which must not count."""
    batches = Feed(seed=77).step(0, 0)

    def evaluate(step):
        torch.rand(5)
        loss = sum(float(objective(base, batch)[0]) for batch in batches)
        return {"loss": loss / sum(batch.tokens for batch in batches)}

    return evaluate


def trainer(run, *, feed=None, observer=None, adapter=None, task=None, **keys):
    """Return the trainer of a whole toy run with evaluation and samples."""
    adapter = adapter or Adapter()
    base = Base(adapter)

    def sample():
        return [f"sample {torch.rand(()):.3f} of {float(base.active.W.sum()):.6f}"]

    identity = {"train.lr": 0.05, "base": "b" * 8, "data": "d" * 8}
    whole = Task(feed or Feed(), objective, evaluation(base), sample, identity)
    return Trainer(base, "toy", replace(whole, **(task or {})), settings(**keys), run, observer)


def told(heard):
    """Return an observer that appends (event, argument) to a list."""

    def listener(event):
        def hear(*arguments):
            heard.append((event, *arguments))

        return hear

    events = ("start", "resumed", "step", "evaluated", "sampled", "saved", "warn", "finished")
    return SimpleNamespace(**{event: listener(event) for event in events})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DyingOs:
    """The `os` module as `storage` uses it; the process is killed at the k-th call that changes the disk."""

    def __init__(self, k):
        self.left = k

    def __getattr__(self, name):
        real = getattr(os, name)
        return (
            self._counted(real) if name in ("mkdir", "open", "write", "fsync", "rename", "unlink") else real
        )

    def _counted(self, real):
        def call(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                die()
            return real(*arguments, **keywords)

        return call


def child(run, keys, kill=None, limit=None, nap=0.0, slow=0.0):
    """Carry out one process of a run.

    kill: ("forward", n) or ("fs", k); limit: RLIMIT_FSIZE; nap, slow: seconds of a forward and of a commit.
    """
    torch.set_num_threads(1)
    calls = [0]

    def mortal(base, batch):
        calls[0] += 1
        if kill == ("forward", calls[0]):
            die()
        time.sleep(nap)
        return objective(base, batch)

    if slow:
        commit = storage.commit
        storage.commit = lambda *parts: (Path(run, "commits").touch(), time.sleep(slow), commit(*parts))[2]
    if kill and kill[0] == "fs":
        storage.writes.os = DyingOs(kill[1])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        storage.disk.PAUSES_S = (0.0, 0.0)
    heard = []
    status = 0
    adapter = Adapter(width=keys.pop("width", WIDTH))
    try:
        trainer(run, observer=told(heard), adapter=adapter, task={"objective": mortal}, **keys).run()
    except GraftError as error:
        Path(run, "error.txt").write_text(str(error))
        status = error.exit_code
    Path(run, "heard.txt").write_text("".join(f"{event} {rest}\n" for event, *rest in heard))
    sys.exit(status)
