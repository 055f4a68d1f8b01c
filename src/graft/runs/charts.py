"""The charts of a run's report: which numbers stand on one chart, by the names that runs give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Records = Sequence[Mapping[str, Any]]
MANY = 30  # points from which on a curve has no markers
COMPARED = ("chosen", "rejected", "good", "bad")  # kinds of answers that rows or pairs compare
OWN = ("reward_deviation", *(f"reward_{kind}" for kind in COMPARED))  # rewards that no function is called


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    traces: as plotly has them.  right: what the axis on the right shows; "" if there is none.
    more: what plotly's layout has besides.
    """

    title: str
    traces: list[dict[str, Any]]
    x: str = "step"
    right: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    height_rem: float = 20

    def layout(self) -> dict[str, Any]:
        """Return plotly's layout."""
        layout: dict[str, Any] = {"margin": {"t": 10, "r": 60 if self.right else 10}}
        layout |= {"xaxis": {"title": {"text": self.x}}, "showlegend": len(self.traces) > 1}
        if self.right:
            layout["yaxis2"] = {"title": {"text": self.right}, "overlaying": "y", "side": "right"}
            layout["legend"] = {"orientation": "h", "y": 1.15}
        return layout | dict(self.more)


@dataclass(frozen=True)
class _Plan:
    """Names of numbers on one chart.  right: those of another unit, on an axis of their own."""

    title: str
    left: Sequence[str]
    right: Sequence[str] = field(default=())


def charts(metrics: Records, timing: Records) -> list[Chart]:
    """Return the charts for which these records have numbers.

    metrics, timing: the lines of the run's two files.
    """
    names = dict.fromkeys(name for record in metrics for name in record)
    found = [_chart(plan, metrics) for plan in _plans(names)]
    found += [_chart(_Plan("Tokens per second", ("tokens_per_s",)), timing)]
    found += [_chart(_Plan("Seconds of writing answers", ("rollout_seconds",)), timing)]
    return [chart for chart in found if chart.traces]


def calibration(points: Sequence[Sequence[float]]) -> Chart:
    """Return the chart of a reward model.  points: its probability, share of right pairs, number of pairs."""
    probability, right, pairs = zip(*points, strict=True)
    told = {
        "x": probability, "y": right, "text": [f"{n} pairs" for n in pairs], "mode": "lines+markers",
        "name": "share of right pairs",
    }  # fmt: skip
    ideal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "name": "as it should be"}
    return Chart("Calibration", [told, ideal], "probability of the preferred answer, as the model says")


def _plans(names: Mapping[str, Any]) -> list[_Plan]:
    """Return what stands together.  names: of all numbers that the run recorded."""
    answers = "reward" in names  # the model writes them itself: their loss when evaluated is minus the reward
    single = [name for name in names if name.removeprefix("eval_").startswith("reward_") and name not in OWN]
    return [
        _Plan("Loss", ("loss", "policy_loss") if answers else ("loss", "eval_loss")),
        _Plan("Reward", ("reward", "eval_reward"), ("eval_judge",)),
        _Plan("Single rewards", single if answers else ()),
        _Plan("Divergence from the reference", ("kl", "eval_kl"), ("beta",)),
        _Plan("Length of answers", ("length", "eval_length"), ("ended", "eval_ended")),
        _Plan("Entropy", ("entropy",)),
        _Plan("Groups", ("reward_deviation",), ("without_variance",)),
        _Plan("Ratio of probabilities", ("ratio",), ("clip_fraction", "value_clip_fraction")),
        _Plan("Divergence from the policy that wrote", ("approximate_kl",)),
        _Plan("Value", ("value", "value_loss"), ("explained_variance",)),
        _Plan("Accuracy", ("accuracy", "eval_accuracy", "token_accuracy")),
        _Plan("Rewards of compared answers", (*_of_answers("reward"), "margin", "reference_point")),
        _Plan("Log-probabilities of compared answers", _of_answers("logp")),
        _Plan("Learning rate", ("lr",)),
        _Plan("Gradient norm", ("grad_norm",)),
    ]


def _of_answers(what: str) -> list[str]:
    """Return the names under which runs on compared answers record a number of them."""
    return [f"{what}_{kind}" for kind in COMPARED]


def _chart(plan: _Plan, records: Records) -> Chart:
    left, right = _curves(records, plan.left), _curves(records, plan.right)
    if not left:  # then the axis on the right is the only one
        return Chart(plan.title, right)
    titles = ", ".join(trace["name"] for trace in right)
    return Chart(plan.title, left + [trace | {"yaxis": "y2"} for trace in right], right=titles)


def _curves(records: Records, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a plotly trace for each name that some record has."""
    traces = []
    for name in names:
        pairs = [(record.get("step"), record.get(name)) for record in records]
        points = [pair for pair in pairs if all(isinstance(number, int | float) for number in pair)]
        if points:
            steps, values = zip(*points, strict=True)
            mode = "lines" if len(points) > MANY else "lines+markers"
            traces.append({"x": steps, "y": values, "name": name.replace("_", " "), "mode": mode})
    return traces
