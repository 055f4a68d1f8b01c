"""Carry out one recipe with every combination of some settings: a folder of ordinary runs, and their table.

    sweep("recipe.yaml", {"method": ["lora", "ia3"], "train.seed": [0, 1, 2]})

Runs that store their base alike share one in memory, as the stages of a chain do: each is equal to the bit to
one that is carried out alone. The same call keeps what has finished, and continues the rest. A run that fails
is named, and the others go on.
"""

import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft import storage
from graft.errors import GraftError, SpaceError, UsageError, notice
from graft.recipe import Recipe, read
from graft.recipe.chain import Chain, read_chain
from graft.recipe.text import inline
from graft.runs.grid import name_of
from graft.runs.records import read_run
from graft.runs.table import Comparison, comparison, line_of
from graft.storage.signals import Interrupted, obeyed

if TYPE_CHECKING:
    from graft.runs.result import RunResult

JSON, CSV = "sweep.json", "sweep.csv"  # in the folder of a sweep
Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep before they are carried out.

    folder: of all.  grid: the values of each key that differs.  recipes: by the name of the run, which is
    that of its folder.  given: the values of each run's keys.
    """

    folder: Path
    grid: Grid
    recipes: Mapping[str, Recipe]
    given: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What came of a sweep.

    runs: results by name.  failed: what went wrong, by the name of the run.  table: of the runs' scores.
    """

    folder: Path
    runs: Mapping[str, "RunResult"]
    failed: Mapping[str, str]
    table: Comparison = field(compare=False)

    def __repr__(self) -> str:
        return f"SweepResult({self.folder}: {len(self.runs)} runs, {len(self.failed)} failed)"

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        runs = {name: result.facts() for name, result in self.runs.items()}
        return {"folder": str(self.folder), "results": runs, "failed": dict(self.failed), **self.table.json()}


def sweep(
    recipe: str | Path | dict[str, Any] | Recipe,
    grid: Grid,
    *,
    output: str | Path | None = None,
    overrides: Iterable[str] = (),
    observer: Any = None,
    progress: bool = True,
) -> SweepResult:
    """Carry out a recipe with every combination of these settings; return the results and their table.

    grid: {key of a recipe: its values}.  output: the folder of all runs, by default runs/NAME-sweep.
    overrides: "key=value" changes of all runs.  observer: one or several (`graft.Observer`) that hear of it;
    its `stage` receives each new run.  progress: show a bar.
    Raises UsageError for a grid or a recipe that cannot be used, before anything runs; CheckpointError for a
    folder that is in use; SpaceError if the disk is full. What fails in one run is in `SweepResult.failed`.
    """
    planned = read_sweep(recipe, grid, output=output, overrides=overrides)
    from graft.runs.audience import attended  # late: torch, which a table of runs does not need

    with obeyed(), attended(observer, progress=progress) as audience, begun(planned) as work:
        for name in work.names:
            work.carry_out(name, audience)
    return work.result()


def read_sweep(
    source: str | Path | dict[str, Any] | Recipe,
    grid: Grid,
    *,
    output: str | Path | None = None,
    overrides: Iterable[str] = (),
    notices: list[str] | None = None,
) -> Sweep:
    """Return the runs of a sweep.  notices: as for `graft.recipe.read`.

    Raises UsageError for values that no run can have, with the run that has them.
    """
    overrides, told = list(overrides), [] if notices is None else notices
    _check(source, grid, overrides)
    usual = "sweep" if isinstance(source, dict | Recipe) else f"{Path(source).stem}-sweep"
    folder = Path(output or f"runs/{usual}")
    recipes: dict[str, Recipe] = {}
    given: dict[str, Mapping[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = name_of(chosen)
        if name in recipes:
            raise UsageError(
                f"two runs would be called {name}", "values that differ", "give every value of a key once"
            )
        changes = [f"{key}={inline(setting)}" for key, setting in chosen.items()]
        found: list[str] = []
        recipes[name] = read(source, [*overrides, *changes, f"output={inline(str(folder / name))}"], found)
        given[name] = chosen
        told += [text for text in found if text not in told]
    return Sweep(folder, grid, recipes, given)


def _check(source: Any, grid: Grid, overrides: Sequence[str]) -> None:
    """Raise UsageError for a grid that is none, and for a recipe of several stages."""
    if not grid or not all(len(values) for values in grid.values()):
        raise UsageError(
            "a sweep without values to try", "keys with their values", "write key=A,B, such as train.seed=0,1"
        )
    for key, values in grid.items():
        if isinstance(values, str) or key in ("output", "output_dir"):
            raise UsageError(
                f"{key}={values!r} as a key to try",
                "a list of values of a setting that the runs may differ in",
                "give the folder of all runs as output (--out)" if "output" in key else f"write [{values!r}]",
            )
    if isinstance(source, Chain) or read_chain(source, overrides) is not None:
        raise UsageError(
            f"{source} has several stages",
            "a recipe of one run",
            "sweep its stages one by one, each with a recipe of its own",
        )


class Work:
    """A sweep that is being carried out.

    names: of the runs, those that share a base one after the other.
    """

    def __init__(self, planned: Sweep) -> None:
        from graft.runs.chain import Bases  # late: torch, which a table of runs does not need

        self.planned = planned
        bases = [_base_of(recipe) for recipe in planned.recipes.values()]
        # Stable: bases in the order in which they first appear, and the runs of each in theirs.
        self.names = sorted(planned.recipes, key=lambda name: bases.index(_base_of(planned.recipes[name])))
        self.runs: dict[str, RunResult] = {}
        self.failed: dict[str, str] = {}
        self.tracebacks: dict[str, str] = {}  # of failures that are defects
        self._bases: Any = Bases()
        self._settled: dict[str, Recipe] = {}
        self._settle()

    def _settle(self) -> None:
        """Settle what is `auto` before a base is in memory, as a run that is alone does."""
        from graft.runs.build import settled
        from graft.runs.identity import as_begun

        for name in self.names:
            try:
                self._settled[name] = settled(as_begun(self.planned.recipes[name]))
            except GraftError as error:
                self._fail(name, error)

    def carry_out(self, name: str, observer: Any = None) -> "RunResult | None":
        """Carry out one run; return None if it failed, for the reason in `failed`.

        Raises what would end all the others: Interrupted, and SpaceError for a full disk.
        """
        from graft.runs.run import carry_out

        if name in self.failed:
            return None
        recipe = self._settled[name]
        if observer is not None:
            observer.stage(name, self.names.index(name) + 1, len(self.names), recipe)
        try:
            self.runs[name] = carry_out(recipe, observer, load=self._bases)
            self._bases.release()
        except (Interrupted, SpaceError):
            raise
        except Exception as error:
            self._fail(name, error)
            self._bases.base = None  # nobody knows in which state the run has left it
        self.record()
        return self.runs.get(name)

    def _fail(self, name: str, error: Exception) -> None:
        known = isinstance(error, GraftError)
        self.failed[name] = str(error) if known else f"{type(error).__name__}: {error} (a defect of graft)"
        if not known:
            self.tracebacks[name] = "".join(traceback.format_exception(error))

    def result(self) -> SweepResult:
        """Return what has come of the sweep so far."""
        names = [name for name in self.planned.recipes if name in self.runs]
        return SweepResult(
            self.planned.folder, {name: self.runs[name] for name in names}, self.failed, self._table(names)
        )

    def _table(self, names: Sequence[str]) -> Comparison:
        """Return the table of these runs, under the names of their folders."""
        lines = [line_of(name, read_run(self.planned.folder / name)) for name in names]
        return comparison([line for line in lines if line is not None])

    def record(self) -> None:
        """Write sweep.json and sweep.csv of what has finished or failed."""
        result, folder = self.result(), self.planned.folder
        runs = {
            name: {
                "settings": dict(self.planned.given[name]),
                "state": "finished" if name in self.runs else "failed" if name in self.failed else "to do",
                **({"error": self.failed[name]} if name in self.failed else {}),
            }
            for name in self.planned.recipes
        }
        facts = {"grid": {key: list(values) for key, values in self.planned.grid.items()}, "sweep": runs}
        storage.write_json(folder / JSON, facts | result.table.json())
        storage.replace(folder / CSV, result.table.csv().encode())


@contextmanager
def begun(planned: Sweep) -> Iterator[Work]:
    """Hold the folder of a sweep inside the block, and yield its work. Raises CheckpointError."""
    storage.require_run_folder(planned.folder)
    with storage.named_errors("while sweeping"), storage.locked(planned.folder):
        work = Work(planned)
        work.record()
        for name, why in work.failed.items():
            notice(f"{name} cannot run: {why}")
        yield work
        work.record()


def _base_of(recipe: Recipe) -> str:
    """Return a text that is equal for runs whose base is stored alike."""
    return repr((recipe.model, recipe.quant, recipe.group_size, recipe.dtype))
