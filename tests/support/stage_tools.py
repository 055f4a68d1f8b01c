"""Stages in a line for the tests: encoders, feeds and prepared rows without a model."""

from types import SimpleNamespace

from graft.data import preparation
from graft.data.feed import Feed
from graft.data.layouts import Accepts
from graft.stages.stage import find


def stage_named(name="sft", objective="causal"):
    return find(name)(objective)


def accepts(name: str) -> Accepts:
    return find(name).accepts()


def encoder_of(
    tokenizer,
    *,
    stage,
    objective="causal",
    family="causal",
    max_length=1024,
    template=None,
    control_tokens=False,
    labels=(),
):
    """Return the encoder of a stage for a model of this family."""
    settings = SimpleNamespace(max_length=max_length, template=template, control_tokens=control_tokens)
    return stage_named(stage, objective).encoder(tokenizer, family, settings, labels)


def batches_of(
    tokenizer,
    *,
    stage="sft",
    objective="causal",
    family="causal",
    max_length=1024,
    pack=True,
    first_position=0,
    decoder_start=None,
):
    """Return how a stage lays out examples for a model of this family, which is not there."""
    config = SimpleNamespace(model_type="llama", decoder_start_token_id=decoder_start)
    model = SimpleNamespace(config=config)
    base = SimpleNamespace(tokenizer=tokenizer, family=family, model=model, adapters={})
    batches = stage_named(stage, objective).batches(base, max_length, pack=pack)
    batches.first_position = first_position
    return batches


def feed_of(examples, tokenizer, *, batch_size=16, micro_batch_size=2, seed=0, by_length=False, **kind):
    """Return the feed of examples; `kind` goes to `batches_of`."""
    return Feed(examples, batches_of(tokenizer, **kind), batch_size, micro_batch_size, seed, by_length)


def prepared(settings, tokenizer, *, stage, objective="causal", **keys):
    """Return what training would start from."""
    return preparation.prepare(settings, tokenizer, stage_named(stage, objective), **keys)
