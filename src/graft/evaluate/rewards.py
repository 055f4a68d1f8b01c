"""Rewards of answers by an adapter of stage reward: a number for each, higher is better."""

from collections.abc import Sequence

from graft.base.base import Base
from graft.data.encode import Encoded, Example
from graft.data.rankings import Answers, prompt_length
from graft.data.rows import BadRow, Row
from graft.data.templates import Prompt
from graft.errors import DataError
from graft.stages.reward_adapters import longest, read


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
    limit = longest(base, adapter)
    encoder = Answers(base.tokenizer, limit, template)
    encoded = Encoded()
    pairs = zip(prompts, answers, strict=True)
    examples = [
        _example(encoder, f"answer {number}", prompt, answer, encoded)
        for number, (prompt, answer) in enumerate(pairs, 1)
    ]
    if encoded.cut:
        raise DataError(
            f"{encoded.cut[0]} does not fit: the model reads {limit} tokens",
            "prompts and answers that fit",
            "shorten them",
        )
    starts = [prompt_length(example) for example in examples]
    asked = [example.ids[:start] for example, start in zip(examples, starts, strict=True)]
    said = [example.ids[start:] for example, start in zip(examples, starts, strict=True)]
    return read(base, adapter, asked, said, [example.source for example in examples], batch_size=batch_size)


def _example(encoder: Answers, source: str, prompt: Prompt, answer: str, encoded: Encoded) -> Example:
    """Return a prompt with its answer as ids, as in training. Raises DataError, which names the source."""
    asked, tools = (prompt["messages"], prompt.get("tools")) if isinstance(prompt, dict) else (prompt, None)
    said = answer if isinstance(asked, str) else [{"role": "assistant", "content": answer}]
    try:
        (example,) = encoder.each(Row(source, "judged", (asked, said, True), tools), encoded)
    except BadRow as error:
        reason, detail, remedy = error.args
        raise DataError(f"{source}: {reason}: {detail}", "an answer that can be read", remedy) from error
    return example
