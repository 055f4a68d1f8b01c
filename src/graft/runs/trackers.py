"""Trackers of experiments, TensorBoard, wandb, MLflow and trackio: train.report_to names those of a run.

    metric                                  as they know it
    loss, lr, grad_norm, tokens_per_s ...   train/loss, train/lr, ... at its step
    eval_loss, ...                          eval/loss, ... at its step
    scores before and after                 score/before/perplexity, score/after/perplexity
    answers to train.samples                texts
    the recipe                              hyper-parameters, by dotted key

A run that goes on after a kill repeats the steps since its last checkpoint, and goes on in the same run of
the tracker: trackers.json in the run's folder holds its name there. Steps that were tracked before are not
tracked again; TensorBoard hides the older ones.

Each library is an extra, imported when a run begins. Where it writes, and whether it uses a network, is as
its own environment variables say.
"""

import importlib.util
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from graft.errors import UsageError, one_of
from graft.recipe import Recipe
from graft.recipe.trackers import TRACKERS
from graft.runs.tracker import Tracker, settings_of

PROJECT = "graft"  # where its own variables name no other


def require_trackers(recipe: Recipe) -> None:
    """Raise UsageError for a tracker of the recipe whose library is not installed. Imports none of them."""
    for name in recipe.train.report_to:
        if importlib.util.find_spec(TRACKERS[one_of("train.report_to", name, TRACKERS)]) is None:
            raise UsageError(
                f"train.report_to names {name}, which is not installed",
                f"the package {TRACKERS[name]}",
                f"pip install 'graftlm[{name}]', or leave it out",
            )


def trackers_of(recipe: Recipe) -> "list[Tracker]":
    """Return the trackers of a recipe, not yet begun. Raises as `require_trackers` does."""
    require_trackers(recipe)
    classes: dict[str, type[Tracker]] = {one.name: one for one in (TensorBoard, Wandb, MLflow, Trackio)}
    return [classes[name](recipe) for name in dict.fromkeys(recipe.train.report_to)]


class TensorBoard(Tracker):
    """Event files in tensorboard/ of the run's folder. A start hides what earlier ones have of its steps."""

    name = "tensorboard"

    def open(self, known: str, done: int) -> str:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer: Any = SummaryWriter(str(self.folder / "tensorboard"), purge_step=done + 1)
        if not known:
            metrics = dict.fromkeys(("train/loss", "eval/loss"), 0.0)
            file: Any = self._writer.file_writer
            for summary in hparams(settings_of(self.recipe), metrics):
                file.add_summary(summary)
            self._writer.add_text("recipe", "    " + self.recipe.yaml().replace("\n", "\n    "), 0)
        return "tensorboard"

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def texts(self, texts: Sequence[str], step: int) -> None:
        for place, text in enumerate(texts):
            self._writer.add_text(f"samples/{place}", text, step)

    def summary(self, values: Mapping[str, float]) -> None:
        self.log(values, self._step)

    def shut(self, outcome: str) -> None:
        self._writer.close()


class Wandb(Tracker):
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and others are read by wandb itself."""

    name = "wandb"

    def open(self, known: str, done: int) -> str:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.folder.resolve().name,
            id=known or secrets.token_hex(4),
            resume="allow",
            dir=str(self.folder),
            config=settings_of(self.recipe),
        )
        # The step that comes next; an offline run begins a part of its own, which has no steps yet.
        self.last = max(done, self._run.step - 1) if known else 0
        return str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def texts(self, texts: Sequence[str], step: int) -> None:
        table = self._wandb.Table(columns=["step", "sample"], data=[[step, text] for text in texts])
        self._run.log({"samples": table}, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def shut(self, outcome: str) -> None:
        self._run.finish(exit_code=0 if outcome == "FINISHED" else 1)


class MLflow(Tracker):
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where."""

    name = "mlflow"

    def open(self, known: str, done: int) -> str:
        import mlflow
        from mlflow import entities

        self._entities = entities
        self._client = client = mlflow.MlflowClient()
        if known:
            client.update_run(known, status="RUNNING")
            tracked = client.get_metric_history(known, "train/tokens")
            self.last = max((metric.step for metric in tracked), default=0)
            self._id = known
            return known
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(title)
        place = client.create_experiment(title) if experiment is None else experiment.experiment_id
        self._id = str(client.create_run(place, run_name=self.folder.resolve().name).info.run_id)
        settings = [self._entities.Param(key, str(value)) for key, value in settings_of(self.recipe).items()]
        client.log_batch(self._id, params=settings)
        return self._id

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def texts(self, texts: Sequence[str], step: int) -> None:
        self._client.log_text(self._id, "\n\n---\n\n".join(texts), f"samples/step-{step:06d}.md")

    def summary(self, values: Mapping[str, float]) -> None:
        self.log(values, self._step)

    def shut(self, outcome: str) -> None:
        self._client.set_terminated(self._id, outcome)


class Trackio(Tracker):
    """A run of trackio, which keeps it on this machine; TRACKIO_DIR says where."""

    name = "trackio"

    def open(self, known: str, done: int) -> str:
        import trackio

        self._trackio = trackio
        name = known or f"{self.folder.resolve().name}-{secrets.token_hex(4)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project=project, name=name, resume="allow", config=settings_of(self.recipe))
        self.last = getattr(self._run, "_next_step", done + 1) - 1 if known else 0
        return name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def texts(self, texts: Sequence[str], step: int) -> None:
        self._run.log({f"samples/{place}": text for place, text in enumerate(texts)}, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=self._step)

    def shut(self, outcome: str) -> None:
        self._run.finish()
