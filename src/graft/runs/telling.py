"""The words for what a run does: one wording for the terminal, for notebooks and for logs."""

import time
from collections.abc import Sequence
from typing import Any

from graft.sizes import MIB, duration, number, size

# What the loops of the library call their progress, in words.
DOING = {"loss": "scoring", "classes": "scoring", "texts": "writing answers", "rows": "preparing rows"}
TOKENS = "tok"
SPEEDS = {TOKENS: "tokens_per_s", "rows": "rows_per_s"}  # of timing.jsonl, by what a stage counts


def doing(what: str) -> str:
    """Return in words what is being done.

    >>> doing("texts"), doing("loading seedling")
    ('writing answers', 'loading seedling')
    """
    return DOING.get(what, what)


def counts_of(stage: str) -> str:
    """Return the unit in which the speed of a stage is told."""
    from graft.recipe.stages import stage_cards  # late: it brings pydantic, which no --help needs

    return stage_cards()[stage].counts


def base_line(facts: dict[str, Any]) -> str:
    """Return which base is trained.  facts: of `Observer.begin`."""
    return f"base    {facts['base']}   {facts['parameters']:,} parameters   {facts['stored']}"


def adapter_line(facts: dict[str, Any]) -> str:
    """Return what is trained on it.  facts: of `Observer.begin`."""
    share = 100 * facts["trained"] / facts["parameters"]
    methods = " + ".join(facts["methods"])
    return f"adapter {methods} on {facts['sites']} sites   {facts['trained']:,} trained ({share:.2g} %)"


def data_line(report: Any) -> str:
    """Return how many rows are learnt and held out, and how many tokens that is.  report: a DataReport."""
    words = [f"{report.train:,} rows", f"{report.tokens_learnt:,} of {report.tokens:,} tokens learnt"]
    words += [f"{report.eval:,} rows held out"] if report.eval else []
    rejected = sum(report.rejected.values())
    return "data    " + "   ".join(words + ([f"{rejected:,} rows left out"] if rejected else []))


def train_line(plan: dict[str, Any]) -> str:
    """Return how long a run is.  plan: of `Observer.start`."""
    return f"train   {plan['steps']:,} steps, {number(plan['trained'])} trainable parameters"


def eval_line(record: dict[str, Any]) -> str:
    """Return the scores of an evaluation."""
    words = (
        f"{name} {value:,.0f}" if name in ("tokens", "answers") else f"{name} {value:.4f}"
        for name, value in evaluated(record).items()
    )
    return f"eval {record['step']:5d}   {'   '.join(words)}"


def evaluated(record: dict[str, Any]) -> dict[str, float]:
    """Return the scores of an evaluation by their plain names.

    >>> evaluated({"step": 5, "epoch": 1.0, "eval_loss": 1.5})
    {'loss': 1.5}
    """
    return {key.removeprefix("eval_"): value for key, value in record.items() if key.startswith("eval_")}


def left(seconds: float) -> str:
    """Return how long a run will still take."""
    return f"eta {duration(seconds)}"


def score_lines(columns: dict[str, dict[str, float]]) -> list[str]:
    """Return the scores, a metric a line.

    >>> score_lines({"before": {"perplexity": 3.7826}, "after": {"perplexity": 2.0743}})
    ['scores  perplexity 3.783 -> 2.074']
    """
    names = dict.fromkeys(name for column in columns.values() for name in column)
    values = {name: [column[name] for column in columns.values() if name in column] for name in names}
    return [f"scores  {name} {in_words(found)}" for name, found in values.items()]


def in_words(values: Sequence[float]) -> str:
    """Return numbers that follow one another.

    >>> in_words([3.7826, 2.0743])
    '3.783 -> 2.074'
    """
    return " -> ".join(f"{value:.4g}" for value in values)


def sample_line(text: str) -> str:
    """Return the beginning of an answer to a sample prompt, in letters that a terminal shows.

    >>> sample_line("Hello. \\x1b[31m")
    'sample  Hello. ·[31m'
    """
    words = " ".join(text.split())[:110]
    return "sample  " + "".join(letter if letter.isprintable() else "·" for letter in words)


class Steps:
    """The steps of a run, as far as they are done.

    every: steps between two lines.  counts: what the speed counts.
    """

    def __init__(self, every: int = 10, counts: str = TOKENS) -> None:
        self.every, self.counts = every, counts
        self.total = self.done = 0
        self._first = 0  # done before this start
        self._said = 0  # the last step that had a line
        self._writes = False  # whether the stage writes the answers that it learns from
        self._began = time.perf_counter()

    def start(self, plan: dict[str, Any]) -> None:
        """Begin to count.  plan: of `Observer.start`."""
        self.total = plan["steps"]
        self.done = self._first = plan.get("done", 0)
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this start."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> float:
        """Seconds until the last step, at the pace so far."""
        return self.seconds / max(1, self.done - self._first) * (self.total - self.done)

    def take(self, record: dict[str, Any]) -> bool:
        """Count a step; return whether it has a line of its own.

        These are the first and the last one, and one in `every` between them; of a stage that writes its own
        answers the next that tells of new ones.
        """
        self.done = record["step"]
        self._writes |= "rollout_seconds" in record
        if self.done not in (1, self.total):
            late = self.done - self._said >= self.every
            due = "rollout_seconds" in record and late if self._writes else self.done % self.every == 0
            if not due:
                return False
        self._said = self.done
        return True

    def line(self, record: dict[str, Any]) -> str:
        """Return a step's line: answers, loss, learning rate, speed, memory, time left."""
        words = [f"step {self.done:5d}", *of_answers(record), *self.figures(record)]
        words += [size(record["memory_mb"] * MIB), left(self.left)]
        return "   ".join(words)

    def figures(self, record: dict[str, Any]) -> list[str]:
        """Return loss, learning rate and speed of a step, or why it has none."""
        if "left_out" in record:
            return [f"left out: {record['left_out']}"]
        learning = max(record["seconds"] - record.get("rollout_seconds", 0.0), 1e-9)
        speed = record[SPEEDS[self.counts]] * record["seconds"] / learning
        return [
            f"loss {record['loss']:.4f}" if "loss" in record else "skipped: not finite",
            f"lr {record['lr']:.1e}",
            f"{speed:,.0f} {self.counts}/s",
        ]

    def ended(self, record: dict[str, Any]) -> str:
        """Return the line of the end.  record: of `Observer.finished`."""
        loss = "" if record["loss"] is None else f"   loss {record['loss']:.4f}"
        early = f" of {self.total:,}" if record["steps"] != self.total else ""
        return f"trained {record['steps']:,}{early} steps{loss}   in {duration(self.seconds)}"


def of_answers(record: dict[str, Any]) -> list[str]:
    """Return what a step's record says of answers that were written before it; nothing where none were."""
    told = {name: round(record[name], 6) + 0.0 for name in ("reward", "kl", "length") if name in record}
    words = [f"{name} {value:.3g}" for name, value in told.items()]
    seconds = record.get("rollout_seconds", 0.0)  # 0: read again, by a run that goes on
    return [*words, f"written in {seconds:.1f} s"] if seconds else words
