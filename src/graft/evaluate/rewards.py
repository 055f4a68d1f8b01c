"""Rewards of answers by an adapter of stage reward: a number for each, higher is better."""

from collections.abc import Sequence
from typing import Any

import torch

from graft.base.base import Base
from graft.core.positions import context_length
from graft.data.answer_batches import AnswerBatches
from graft.data.conversations import Conversations
from graft.data.encode import Encoded, Example
from graft.data.rows import BadRow, Row, with_answers
from graft.data.templates import Prompt
from graft.errors import DataError
from graft.generate.generate import evaluating
from graft.objectives.reward import answer_rewards

LONGEST = 4096  # tokens of a prompt with its answer, where the model has no limit of its own


def rewards(
    base: Base,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    adapter: str,
    template: str | None = None,
    batch_size: int = 8,
) -> list[float]:
    """Return the reward of every answer to its prompt.

    prompts: texts, or conversations that end with a user's turn; as for `Base.generate`.
    adapter: of the base, with a head of one output.  template: as in `data:` of its recipe.
    Raises DataError, which names the answer, where one cannot be read; AdapterError for another adapter.
    """
    limit = context_length(base.model.config)
    longest = LONGEST if limit is None else limit - base.positions([adapter])
    encoder = Conversations(base.tokenizer, longest, template)
    pairs = zip(prompts, answers, strict=True)
    rows = [_row(number, prompt, answer) for number, (prompt, answer) in enumerate(pairs, 1)]
    encoded = Encoded()
    examples = [_example(outcome, row) for row, outcome in encoder.encode(rows, encoded)]
    if encoded.cut:
        raise DataError(
            f"{encoded.cut[0]} does not fit: the model reads {longest} tokens",
            "prompts and answers that fit",
            "shorten them",
        )
    batches = AnswerBatches(base.tokenizer, longest)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    found = [0.0] * len(examples)
    with torch.no_grad(), evaluating(base), base.using(adapter):
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch: Any = batches.padded([examples[i] for i in chosen]).to(base.device)
            for i, reward in zip(chosen, answer_rewards(base, batch).tolist(), strict=True):
                found[i] = reward
    return found


def _row(number: int, prompt: Prompt, answer: str) -> Row:
    """Return a prompt with its answer as a row that is named by its number."""
    asked, tools = (prompt["messages"], prompt.get("tools")) if isinstance(prompt, dict) else (prompt, None)
    said = answer if isinstance(asked, str) else [{"role": "assistant", "content": answer}]
    (row,) = with_answers(Row(f"answer {number}", "judged", (asked, said, True), tools))
    return row


def _example(outcome: list[Example] | BadRow, row: Row) -> Example:
    """Return the example of a row. Raises DataError if it has none."""
    if isinstance(outcome, BadRow):
        reason, detail, remedy = outcome.args
        raise DataError(f"{row.source}: {reason}: {detail}", "an answer that can be read", remedy)
    outcome[0].target = 1
    return outcome[0]
