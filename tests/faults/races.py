"""Start two commands with other settings into one folder: one wins, and the folder holds its run alone.

The second starts at a random moment of the first. One must end well and the other be refused; the folder must
hold the recipe of the winner, and the adapter that its recipe gives alone. The winner's command must then be
accepted again, and the loser's be refused.
"""

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import children
import recorder
import victims
import yaml
from cells import Cell, Fault, Outcome, counts

RATES = (0.001, 0.002)


class Races:
    """The stand: pairs of commands without end, started 0 to `span_s` apart."""

    total: int | None = None

    def __init__(self, folder: Path, span_s: float) -> None:
        self.folder, self.span_s = folder, span_s
        self.home = victims.home(folder / "home")
        self.alone: dict[float, Mapping[str, bytes]] = {}
        for rate in RATES:
            place = folder / "alone" / str(rate)
            child = self._start(place, rate)
            if child.wait() != 0:
                raise Fault(f"a run alone fails: {child.said()[-400:]}")
            self.alone[rate] = victims.trained(place)

    def _start(self, place: Path, rate: float) -> children.Child:
        recipe = victims.settings(self.home, place, train={"lr": rate})
        path = victims.write_recipe(self.folder / f"{rate}.yaml", recipe)
        talk = self.folder / f"talk-{rate}.txt"
        return children.start(["train", str(path)], talk, victims.environment(self.home))

    def name(self, number: int) -> str:
        return f"the second starts {self._apart(number):.3f} s after the first"

    def _apart(self, number: int) -> float:
        return random.Random(f"race {number}").uniform(0.0, self.span_s)

    def case(self, number: int) -> Outcome:
        place = recorder.cleared(self.folder / "state") / "victim"
        rates = RATES if number % 2 else RATES[::-1]
        first = self._start(place, rates[0])
        time.sleep(self._apart(number))
        second = self._start(place, rates[1])
        ended = {rate: (child, child.wait()) for rate, child in zip(rates, (first, second), strict=True)}
        codes = {rate: code for rate, (_, code) in ended.items()}
        if sorted(codes.values(), key=str) != [0, 1]:
            raise Fault(f"exit codes {codes}: {ended[rates[1]][0].said()[-200:]}")
        winner = next(rate for rate in rates if codes[rate] == 0)
        self._judge(place, winner)
        loser = next(rate for rate in rates if rate != winner)
        for rate, wanted in ((winner, 0), (loser, 1)):
            if self._start(place, rate).wait() != wanted:
                raise Fault(f"afterwards the command of {rate} does not end with {wanted}")
        return Outcome()

    def _judge(self, place: Path, winner: float) -> None:
        recipe: dict[str, Any] = yaml.safe_load((place / "recipe.yaml").read_text())
        if recipe["train"]["lr"] != winner:
            raise Fault(f"{winner} has won, and recipe.yaml says {recipe['train']['lr']}")
        if names := victims.differing(self.alone[winner], victims.trained(place)):
            raise Fault(f"{names} of the winner differ from those of its run alone")

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


CELLS = [
    Cell("races", "at once", lambda f: Races(f, 0.05), counts(1, 6, 50)),
    Cell("races", "in any phase", lambda f: Races(f, 2.5), counts(0, 6, 50)),
]
