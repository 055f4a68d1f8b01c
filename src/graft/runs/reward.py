"""A reward adapter as a judge: how good it finds answers (`graft.evaluate.rewards`)."""

from collections.abc import Callable, Sequence

from graft.data.templates import Prompt
from graft.evaluate.rewards import rewards
from graft.runs.open import open_model
from graft.stages.reward_adapters import require_rewards


def rewards_of(name: str) -> Callable[[Sequence[Prompt], Sequence[str]], list[float]]:
    """Return the function (prompts, answers) -> rewards of a run of stage reward, or of its adapter's folder.

    Prompts are asked as in the run. Raises AdapterError if it has no head with one output.
    """
    opened = open_model(name)
    base = opened.base
    adapter = require_rewards(base.adapters[opened.adapter] if opened.adapter else None, name)
    template = None if opened.recipe is None else opened.recipe.data.template

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        asked = [opened.prompt(prompt) for prompt in prompts]
        return rewards(base, asked, answers, adapter=adapter, template=template)

    return score
