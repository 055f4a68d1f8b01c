"""The answers to a run's sample prompts, read again from the file that training writes.

    ## step 100          then for each prompt:   the prompt, its answer, a rule of three hyphens

Prompts and answers may hold such lines themselves. So the file is read by the prompts of the recipe; where it
does not have their form, it is not taken apart.
"""

import re
from collections.abc import Sequence

HEADING = r"## step (\d+)\n\n"
MOST = 6  # steps that a table shows


def by_step(text: str, prompts: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return {step: answers, in the order of the prompts}; empty for a text of another form.

    >>> by_step("## step 5\\n\\nHi\\n\\nHello.\\n\\n---\\n\\n", ["Hi"])
    {5: ('Hello.',)}
    """
    answers = "".join(rf"{re.escape(prompt)}\n\n(.*?)\n\n---\n\n" for prompt in prompts)
    section = re.compile(rf"{HEADING}{answers}(?={HEADING.replace('(', '(?:')}|\Z)", re.DOTALL)
    found: dict[int, tuple[str, ...]] = {}
    end = 0
    while match := section.match(text, end):
        step, *rest = match.groups()
        found[int(step)], end = tuple(rest), match.end()
    return found if end == len(text) else {}


def spread(steps: Sequence[int]) -> list[int]:
    """Return at most MOST of these steps, evenly spread, with the first and the last one.

    >>> spread(range(10, 110, 10))
    [10, 30, 50, 60, 80, 100]
    """
    if len(steps) <= MOST:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (MOST - 1))] for place in range(MOST)]
