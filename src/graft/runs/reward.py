"""A reward adapter as a judge: how good it finds answers (`graft.evaluate.rewards`)."""

from collections.abc import Callable, Sequence

from graft.data.templates import Prompt
from graft.errors import AdapterError
from graft.evaluate.rewards import rewards
from graft.runs.open import open_model


def rewards_of(name: str) -> Callable[[Sequence[Prompt], Sequence[str]], list[float]]:
    """Return the function (prompts, answers) -> rewards of a run of stage reward, or of its adapter's folder.

    Prompts are asked as in the run. Raises AdapterError if it has no head with one output.
    """
    opened = open_model(name)
    adapter, base = opened.adapter, opened.base
    head = base.adapters[adapter].head if adapter is not None else None
    if adapter is None or head is None or head.num_labels != 1 or head.every_token:
        raise AdapterError(
            f"{name} gives no rewards", "an adapter with a head of one output", "train one with stage: reward"
        )
    template = None if opened.recipe is None else opened.recipe.data.template

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        asked = [opened.prompt(prompt) for prompt in prompts]
        return rewards(base, asked, answers, adapter=adapter, template=template)

    return score
