"""Iterations of online stages without a run: a base in double precision, rollouts, one step by itself."""

import itertools

import torch
from safetensors.torch import load_file

import graft
from graft.data import load_rows
from graft.data.feed import Feed
from graft.data.sampled import Sampled
from graft.models.load import load
from graft.runs.build import feed
from graft.stages.stage import stage_of
from graft.training.rollouts import Rollouts
from graft.training.step import measure
from models import randomise


def exact_base(home):
    """A base in double precision with a policy that is not newborn, and the reference it started from."""
    base = load(str(home / "model"), dtype="fp32")
    base.model.double()
    for name, seed in (("policy", 1), ("policy as it started", 2)):
        randomise(base.attach(name, graft.LoRA(r=2, target_modules=["q_proj", "down_proj"])), seed, 0.05)
    return base


def prepared(base, chosen, folder, adapter="policy"):
    """The stage of a recipe, and rollouts under an adapter of the base."""
    stage = stage_of(chosen)
    encoder = stage.encoder(base.tokenizer, base.family, chosen.data)
    examples = list(encoder(load_rows(chosen.data, stage.accepts()).train).examples)
    train = chosen.train
    prompts = feed(base, chosen, examples, train.batch_size, train.micro_batch_size)
    stage.beside(base, adapter)
    return stage, Rollouts(base, adapter, stage, prompts, folder, {"run": 1})


def step(base, stage, prompts, examples, *, pack, micro, also=()):
    """Loss, metrics and gradients of one step of the policy.  also: adapters with gradients beside it."""
    batches = stage.batches(base, prompts.batches.max_length, pack=pack)
    other = Feed(prompts.examples, batches, len(examples), micro, prompts.seed)
    adapter = base.adapters["policy"]
    with base.using("policy"):
        measured = measure(base, adapter, stage.loss, other.micro_batches(list(examples)), lambda mask: None)
    trained = [p for name in ("policy", *also) for p in base.adapters[name].parameters()]
    gradients = [p.grad.clone() for p in trained if p.grad is not None]
    for p in trained:
        p.grad = None
    return measured.loss, measured.metrics, gradients


def answer_logprobs(base, example, adapter, temperature):
    """log p of every token of each answer of an example, by a forward of prompt and answer alone."""
    found = []
    for a, b in itertools.pairwise([0, *example.parts["ends"]]):
        ids = torch.tensor([[*example.ids, *example.parts["answers"][a:b]]])
        with base.using(adapter):
            logits = base.logits(base.hidden(ids))[0] / temperature
        first = len(example.ids)
        chosen = logits.log_softmax(-1)[first - 1 : -1].gather(1, ids[0, first:, None])
        found.append(chosen[:, 0])
    return found


def written(rollouts, folder, number=0):
    """What an iteration has written, as its file holds it."""
    file = folder / "rollouts" / f"{number:06d}" / "answers.safetensors"
    return Sampled.from_tensors(load_file(file), rollouts.examples)
