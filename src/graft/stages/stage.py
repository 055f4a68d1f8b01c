"""Stage: what the rows of a run are used for, from their layout to the loss.

A stage is one file of `graft/stages`, named as users name it. Its class says everything that is special about
the stage; the loop, the planner, the evaluation and the command line call the doors below without asking
which stage it is. Layouts, objectives and metrics are declared as plain tuples: recipes and row checks read
them as text, before torch is imported.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core import registry
from graft.core.method import Method
from graft.data.batches import Batches
from graft.data.encode import Encoder, Example
from graft.data.feed import Feed
from graft.data.layouts import Accepts
from graft.data.rows import Row
from graft.data.templates import Jinja, Prompt
from graft.errors import UsageError
from graft.objectives.lm import Loss
from graft.objectives.sums import accuracy
from graft.recipe import Recipe
from graft.recipe.stages import names_function, stage_card

Points = list[tuple[float, float, int]]


@dataclass(frozen=True)
class Start:
    """What training starts from.

    adapter: its name.  newborn: it changes nothing yet, so that the model is the bare base.
    """

    adapter: str
    newborn: bool = False


@dataclass(frozen=True)
class Stage(ABC):
    """Base class of every stage.  objective: one of `objectives`, for a stage that has several.

    Further fields are settings of the stage, which recipes write beside its name; a comment is their help.
    """

    objective: str = "causal"

    layouts: ClassVar[tuple[str, ...]] = ()  # of rows that can be used; the first that fits is taken
    objectives: ClassVar[tuple[str, ...]] = ("causal",)
    metrics: ClassVar[tuple[str, ...]] = ("loss",)  # measured before and after, where a recipe names none
    families: ClassVar[tuple[str, ...]] = (
        "causal",
        "masked",
        "seq2seq",
        "encoder",
    )  # of models that can learn it
    asks: ClassVar[bool] = False  # rows have a prompt, so that what a model writes to it can be scored
    labelled: ClassVar[bool] = False  # rows name classes, for which the adapter gets a head
    aligned: ClassVar[tuple[str, ...]] = ()  # parts of an example that tell something of each of its ids
    packs: ClassVar[bool] = False  # documents may share a row, where the model allows it
    counts: ClassVar[str] = "tok"  # what its speed is told in: tok, which pass through the model, or rows
    takes_functions: ClassVar[bool] = False  # `objective` may be a function of the user's own
    headed: ClassVar[bool] = False  # the adapter answers by a task head: the bare base has no answer
    online: ClassVar[bool] = (
        False  # rows only ask: the model writes the answers it learns from (see `online`)
    )

    @classmethod
    def name(cls) -> str:
        """Return the name that users write: that of the file."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def accepts(cls) -> Accepts:
        """Return which layouts of rows the stage reads."""
        return Accepts(cls.name(), cls.layouts)

    @property
    def writes(self) -> bool:
        """Whether a trained model answers with text, so that one can chat with it."""
        return False

    # The model and its adapter

    @classmethod
    def objective_of(cls, family: str) -> str:
        """Return the objective that measures a model of this family, where no recipe says it."""
        return cls.objectives[0]

    def task(self, config: Any, methods: Sequence[type[Method]]) -> str | None:
        """Return the kind of model to load, as `graft.load(task=)` names it; None is the folder's own."""
        return None

    def check_complete(self) -> None:  # noqa: B027
        """Raise UsageError for a setting that is missing: a run needs it, looking at rows or planning not."""

    def check_base(self, base: Base) -> None:
        """Raise UsageError for a model that cannot learn by this stage."""
        if base.family not in self.families:
            raise UsageError(
                f"stage {self.name()} on {base.name}, a {base.family} model",
                f"a {' or '.join(self.families)} model",
                "choose another stage, or another model",
            )

    def methods(self, methods: Sequence[Method], labels: Sequence[str], *, tagged: bool) -> list[Method]:
        """Return a recipe's methods, completed by what the rows tell.

        labels: names of the rows' classes, empty where rows have none.  tagged: every word has one.
        """
        return list(methods)

    def fit(self, adapter: Adapter, labels: Sequence[str], *, tagged: bool) -> None:  # noqa: B027
        """Complete an adapter that was made before the rows were known. Raise UsageError on a misfit."""

    # Rows, examples, batches

    def template(self, settings: Any, tokenizer: Any) -> Jinja | None:
        """Return the Jinja text that writes the rows, or several, or None.  settings: a recipe's `data:`."""
        return None

    def asks_by_template(self, settings: Any) -> bool:
        """Return whether prompts go through the chat template.  settings: a recipe's `data:`."""
        return False

    @abstractmethod
    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        """Return what turns rows into examples.

        family: of the model.  settings: with `max_length` and `template`, as a recipe's `data:` has them.
        """

    @abstractmethod
    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> Batches:
        """Return what turns examples into tensors for this base.  pack: where the stage packs at all."""

    def pieces(self, example: Example, tokenizer: Any, labels: Sequence[str]) -> list[list[Any]] | None:
        """Return an example as a person reads it, [[text, learnt], ...]; None to show its ids as text."""
        return None

    # Loss and scores

    def depends(self, base: Base) -> Mapping[str, Any]:
        """Return what decides the steps of a run beside its recipe, base and rows, as JSON by name."""
        return {}

    def beside(self, base: Base, adapter: str) -> Mapping[str, str]:
        """Attach what is trained beside an adapter; return {folder in the run's: name of the adapter}."""
        return {}

    def as_planned(self) -> "Stage":
        """Return the stage as memory is planned with it: without what has to be read from files."""
        return self

    def before_training(
        self, base: Base, start: Start, feeds: Mapping[str, Feed], folder: Path, identity: Mapping[str, Any]
    ) -> Mapping[str, Feed]:
        """Return the feeds of a run with what its loss reads beside the rows, such as a reference's answers.

        Called at every start of a run, also of a stopped one, with the adapter as training started from it.
        folder, identity: of the run, to keep what must not change while it goes on.
        """
        return feeds

    def before_scoring(self, base: Base, adapter: str | None, feed: Feed, folder: Path | None) -> Feed:
        """Return the same for other rows, on which a model is scored.

        adapter, folder: of the run that is scored, if it is one.
        """
        return feed

    def before_step(self, base: Base, batches: Sequence[Any]) -> Sequence[Any]:
        """Return the micro-batches of one step with what only all of them together tell the loss."""
        return batches

    @abstractmethod
    def loss(self, base: Any, batch: Any) -> Loss:
        """Return the loss and metrics, summed over all that is supervised; "tokens" counts it.

        A metric is a number, or a tensor: the sums over micro-batches go to `progress` and `scores`.
        """

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Return what the line of a training step says beside its loss.  sums: of the step's metrics."""
        return accuracy(sums)

    def baseline(self, feed: Feed) -> tuple[str, dict[str, float]] | None:
        """Return (title, scores) of what needs no model, to stand beside a headed adapter's; or None."""
        return None

    def summed(
        self, base: Base, feed: Feed, told: Callable[[str, int, int], None]
    ) -> tuple[float, dict[str, Any]] | None:
        """Return the loss and the sums by which held-out rows are scored; None: those of `loss`.

        told: is called with (what, done, total).
        """
        return None

    def warning(self, earlier: Sequence[Mapping[str, float]], now: Mapping[str, float]) -> str | None:
        """Return what the scores of a run's evaluations should make its user doubt; or None.

        earlier: the scores of the evaluations before, the oldest first.
        """
        return None

    def scores(self, loss: float, sums: dict[str, Any]) -> dict[str, float]:
        """Return what an evaluation reports.

        loss: per supervised token or row.  sums: the metrics of `loss`, added up over all batches.
        """
        means = {name: value / sums["tokens"] for name, value in sums.items() if name != "tokens"}
        return {"loss": loss, **means, "tokens": sums["tokens"]}

    def curves(self, sums: dict[str, Any]) -> dict[str, Points]:
        """Return what an evaluation draws beside its scores: points (x, y, weight) by name.

        sums: as for `scores`.
        """
        return {}

    def questions(self, rows: Sequence[Row]) -> Sequence[Prompt]:
        """Return what held-out rows ask, each once; none where rows ask nothing.

        A text is asked in the way of each model; a conversation passes through its chat template.
        """
        return []


def find(name: str) -> type[Stage]:
    """Return the class of `graft/stages/NAME.py`. Raises UsageError with the nearest name."""
    card = stage_card(name)
    cls: type[Stage] = getattr(importlib.import_module(f"graft.stages.{name}"), card.cls)
    return cls


def stage_of(recipe: Recipe) -> Stage:
    """Return the stage of a recipe."""
    cls = find(recipe.stage_name)
    own = cls.objectives[0] if names_function(recipe.objective) else recipe.objective
    return cls(**{"objective": own} | recipe.stage_settings)


def task_of(recipe: Recipe, config: Any) -> str | None:
    """Return the kind of model that a recipe loads.  config: transformers' of its base."""
    return stage_of(recipe).task(config, [registry.find(settings["name"]) for settings in recipe.methods])


def methods_of(recipe: Recipe, labels: Sequence[str] = (), *, tagged: bool = False) -> list[Method]:
    """Return a recipe's methods as objects, completed by what its rows tell (`Stage.methods`)."""
    methods = [registry.described(settings) for settings in recipe.methods]
    return stage_of(recipe).methods(methods, labels, tagged=tagged)
