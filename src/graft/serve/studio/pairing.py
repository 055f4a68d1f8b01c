"""Who meets whom in the arena: a random pair of models on random sides, seldom met pairs first."""

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations

from graft.errors import GraftError
from graft.serve.failures import ApiError
from graft.serve.registry import NoRoom
from graft.serve.studio.votes import Contestant
from graft.serve.texts import Served

log = logging.getLogger("graft.serve")
CHANCE = secrets.SystemRandom()
SHORTEST = 3  # letters of a name that is looked for in answers: shorter ones stand in many words
Met = Counter[frozenset[Contestant]]


def contestants(served: Served) -> dict[str, Contestant]:
    """Return the bare base and every adapter that the server knows, by name."""
    base = Contestant(served.name, str(served.base.fingerprint()))
    adapters = [Contestant(info.name, info.digest) for info in served.registry.infos()]
    return {one.name: one for one in [base, *adapters]}


async def draw(
    served: Served, met: Met, wanted: Sequence[str] | None, silent: set[Contestant]
) -> tuple[Contestant, Contestant]:
    """Return two models that write, on random sides.

    met: the votes of each pair.  wanted: names of those that may meet; None: all.  silent: those that turned
    out to write no text; more are added. Raises ApiError, which names no model but those that were asked for.
    """
    known = await asyncio.to_thread(contestants, served)
    if unknown := [name for name in wanted or [] if name not in known]:
        raise ApiError(404, f"no model {unknown[0][:80]!r}: GET /v1/models lists them", param="contestants")
    chosen = known if wanted is None else {name: known[name] for name in wanted}
    while True:
        able = [one for one in chosen.values() if one not in silent]
        if len(able) < 2:
            raise ApiError(
                409,
                "two models that write are needed for a vote: serve a folder with adapters that write text",
                code="too_few_models",
            )
        pair = seldom(able, met)
        mute = await asyncio.wrap_future(served.worker.call(partial(_mute, served, pair)))
        if not mute:
            first, second = CHANCE.sample(pair, 2)
            return first, second
        silent |= mute


def seldom(able: Sequence[Contestant], met: Met) -> tuple[Contestant, Contestant]:
    """Return a random pair; its chance falls with the square of the votes that it has."""
    pairs = list(combinations(able, 2))
    least = min(met[frozenset(pair)] for pair in pairs)
    weights = [(1 + met[frozenset(pair)] - least) ** -2 for pair in pairs]
    return CHANCE.choices(pairs, weights)[0]


def _mute(served: Served, pair: Sequence[Contestant]) -> set[Contestant]:
    """Return those of a pair that write no text; in the engine's thread, which loads them."""
    mute = set()
    for one in pair:
        if one.name == served.name:
            continue
        try:
            version = served.registry.acquire(one.name)
        except NoRoom:  # it waits for its turn, as every text does
            continue
        except GraftError as error:
            log.warning("the arena leaves a model out: %s", error)
            mute.add(one)
            continue
        if version.heads:
            mute.add(one)
        served.registry.release(version)
    return mute


def names_one(text: str, names: Sequence[str]) -> bool:
    """Return whether a text names a model, in whatever case and with whatever signs between its words.

    >>> names_one("I am Sql Expert!", ["sql-expert"]), names_one("a mysql expert", ["sql-expert"])
    (True, False)
    """
    for name in names:
        words = [re.escape(word) for word in re.split(r"[\W_]+", name) if word]
        if len("".join(words)) >= SHORTEST:
            pattern = r"(?<![^\W_])" + r"[\W_]*".join(words) + r"(?![^\W_])"
            if re.search(pattern, text, re.IGNORECASE):
                return True
    return False
