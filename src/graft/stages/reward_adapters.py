"""Rewards by an adapter of stage reward, on the base that writes the answers: a number for each of them.

Ids are read as they were written: nothing is decoded and tokenised again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.positions import context_length, first_position
from graft.data.answer_batches import AnswerBatches
from graft.data.answer_groups import Ids, batched
from graft.errors import AdapterError, DataError, UsageError
from graft.generate.generate import evaluating
from graft.objectives.reward import answer_rewards

LONGEST = 4096  # tokens of a prompt with its answer, where the model has no limit of its own


def attached(base: Base, name: str) -> str:
    """Return the name on the base of the adapter of a reward run, which is attached if it is not there yet.

    name: a run's folder, or that of an adapter: ours, PEFT's or TRL's. On the base it is `reward NAME`.
    Raises UsageError without such a folder, AdapterError if the adapter does not fit, or gives no rewards.
    """
    own = f"reward {name}"
    if own in base.adapters:
        return own
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(
            f"the reward {name}: there is no such folder",
            "a run of stage reward, the folder of its adapter, or package.module:function",
            "check the path",
        )
    run = (folder / "recipe.yaml").exists() and not (folder / "adapter_config.json").exists()
    if run and not (folder / "adapter").is_dir():
        raise UsageError(
            f"{name} has no adapter yet", "a run that has finished", f"continue it: graft train {name}"
        )
    adapter = base.load_adapter(folder / "adapter" if run else folder, own)
    try:
        return require_rewards(adapter, name)
    except AdapterError:
        base.detach(own)
        raise


def require_rewards(adapter: Adapter | None, name: str) -> str:
    """Return the name of an adapter on its base. name: as the user wrote it.

    Raises AdapterError if it has no head that reads one number at the last token of an answer.
    """
    head = None if adapter is None else adapter.head
    if adapter is None or head is None or head.num_labels != 1 or head.pool not in ("last", "auto"):
        raise AdapterError(
            f"{name} gives no rewards",
            "an adapter with a head of one output, at the last token",
            "train one with stage: reward",
        )
    return adapter.name


def longest(base: Base, adapter: str) -> int:
    """Return how many tokens of a prompt with its answer an adapter of this base reads."""
    limit = context_length(base.model.config)
    return LONGEST if limit is None else limit - base.positions([adapter])


def read(
    base: Base,
    adapter: str,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    sources: Sequence[str],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the reward of every answer, read at its last id, without dropout and gradients.

    prompts, answers: ids, with the token that ends an answer if one does.  sources: names in errors.
    batch_size: answers in one forward. Answers to one prompt that are neighbours share it, if the base allows
    that.  progress: is called with the number of answers that have been read.
    Raises DataError, which names the answer, for one without ids, or longer than the model reads.
    """
    limit = longest(base, adapter)
    sizes = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    for answer, size, source in zip(answers, sizes, sources, strict=True):
        if not answer or size > limit:
            raise DataError(
                f"{source}: an answer of {len(answer)} tokens, {size} with its prompt",
                f"an answer of 1 token or more, and at most {limit} with its prompt",
                "lower max_new_tokens, or shorten the prompt" if answer else "remove it",
            )
    share = base.family == "causal" and base.unpackable(max(sizes, default=0)) is None
    batches = AnswerBatches(
        base.tokenizer, limit, pack=share, first_position=first_position(base.model.config)
    )
    found, done = [0.0] * len(answers), 0
    with torch.no_grad(), evaluating(base), base.using(adapter):
        for places, batch in batched(batches, prompts, answers, batch_size):
            on_device: Any = batch.to(base.device)
            rewards = answer_rewards(base, on_device).tolist()
            for i, reward in zip(places, rewards, strict=True):
                found[i] = reward
            done += len(rewards)
            if progress is not None:
                progress(done)
    return found
