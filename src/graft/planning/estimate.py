"""Plan: what a run will hold in memory and whether that fits, reckoned from facts (`graft.planning.costs`).

    train    = held + a micro-batch's forward and backward         one step of the sketch
    evaluate = held - gradients + a batch's forward                 one forward of the sketch
    save     = held - gradients + a copy of adapter and optimizer   on their way to disk
    write    = held - gradients + keys and values of the answers    of stages whose model writes
    finish   = held - gradients + what steps left + the report      on the CPU

    held     = process + weights + adapter + gradients + optimizer  exact: the objects of the run, as sketches

The process itself (interpreter, libraries, what they take at their first use) is measured, as is the memory
of the machine. Bytes of a step are those of the operations' results. On the CPU glibc also keeps freed
blocks, by a measured share; what a GPU's allocator keeps is not counted.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from graft.core import html_card
from graft.planning.costs import Facts
from graft.planning.seconds import NOT_MEASURED, Pace, Rates, pace
from graft.recipe.levers import Lever, Use, levers
from graft.sizes import MIB, size

# What a run's process takes on the CPU after its plan, beside tensors: code that is imported late, the
# tokenizer, the libraries' own memory after their first use. Measured, see benchmarks/memory.
LIBRARIES = 48 * MIB
REPORT = 28 * MIB  # writing report.html, with the script that draws its curves


@dataclass(frozen=True)
class Plan:
    """The memory of a run, in bytes.

    parts: what is held, the step, and what the allocator keeps.
    peaks: of train, evaluate and save, all included.
    process: what the process has before the run.  available: memory that this process can have.
    micro_batch: the largest that fits, 0 if none does.  levers: settings that would save the most.
    dtype: number format of base and computation.  why: it is that one, in words.
    checkpointing: activations are computed again in backward.
    pace: how fast it goes; None if the machine was not measured.
    longest: tokens of the longest rows that fit, 0 if none do, None if nobody asked.
    adapters: how many of these adapters fit in memory beside the base, to answer; None if nobody asked.
    batch: rows of an optimizer step, 0 if that is not known.
    """

    base: str
    parameters: int
    trained: int
    sites: int
    parts: dict[str, int]
    peaks: dict[str, int]
    process: int
    available: int
    device: str
    micro_batch: int
    levers: list[Lever] = field(default_factory=list)
    dtype: str = ""
    why: str = ""
    checkpointing: bool = False
    pace: Pace | None = None
    longest: int | None = None
    adapters: int | None = None
    batch: int = 0

    @property
    def fits(self) -> bool:
        """Whether every phase fits into what the machine can give."""
        return self.peak <= self.available

    @property
    def peak(self) -> int:
        """The largest of the peaks."""
        return max(self.peaks.values())

    @property
    def needs(self) -> int:
        """What the run itself takes: the peak without what the process has before."""
        return self.peak - self.process

    @property
    def verdict(self) -> str:
        """Whether the run fits, with what it needs and what there is, in words."""
        verdict = "fits" if self.fits else "DOES NOT FIT"
        there = f"{size(self.available)} available ({self.device.upper()})"
        return f"{verdict}: needs {size(self.peak)}, {there}"

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"fits": self.fits}

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_card.of_text(str(self), "Plan")

    def __str__(self) -> str:
        trained = f"{self.trained:,} trainable parameters ({100 * self.trained / self.parameters:.2g} %)"
        in_step = {"gradients": "gradients", "optimizer": "optimizer", "step": "step", "allocator": "reserve"}
        in_words = {part: size(count) for part, count in self.parts.items()}
        again = "   (activations are computed again in backward)" if self.checkpointing else ""
        lines = [
            f"base     {self.base}   {self.parameters:,} parameters   {in_words['weights']}",
            *([f"dtype    {self.dtype}: {self.why}"] if self.dtype else []),
            f"adapter  {trained} on {self.sites} sites   {in_words['adapter']}",
            f"process  {size(self.process)}   Python and its libraries",
            "training " + ", ".join(f"{word} {in_words[part]}" for part, word in in_step.items()) + again,
            "peak     " + ", ".join(f"{phase} {size(most)}" for phase, most in self.peaks.items()),
            f"memory   {self.verdict}",
            *([f"time     {self.pace or NOT_MEASURED}"] if self.dtype else []),
            f"largest  {self._largest()}",
        ]
        helpful = [f"{x.change} (-{size(x.saves)}, {x.costs})" for x in self.levers]
        titles = ["To save memory: ", *[" " * 16] * len(helpful)]
        return "\n".join(lines + [title + text for title, text in zip(titles, helpful, strict=False)])

    def _largest(self) -> str:
        """Return the most that fits, in words; each alone."""
        if not self.micro_batch:
            return "not even one row fits"
        whole = self.batch and self.micro_batch >= self.batch  # more rows at once would change the step
        most = [f"train.micro_batch_size={self.batch if whole else self.micro_batch}"]
        if self.longest:
            most.append(f"data.max_length={self.longest}")
        if self.adapters:
            most.append(f"{self.adapters:,} such adapters in memory, to answer")
        return "   or ".join(most)


@dataclass(frozen=True)
class Room:
    """The memory of a machine: bytes that a process can have, and has before the run, on a device."""

    available: int
    device: str
    process: int


def estimate(facts: Facts, room: Room, rates: Rates | None = None) -> Plan:
    """Return the plan of a run in this room.  rates: of this machine, if they are known."""
    held, run, device = facts.held, facts.run, room.device
    parts = held.parts | {"step": max(run.tensors, held.update), "allocator": run.holes(device)}
    resident = room.process + facts.beside + sum(held.parts.values())
    between = resident - held.parts["gradients"]
    peaks = {
        "train": resident + parts["step"] + parts["allocator"],
        "evaluate": between + facts.evaluation.tensors + facts.evaluation.holes(device),
        "save": between + held.parts["adapter"] + held.states,
    }
    if facts.writing:
        peaks["write"] = between + facts.writing
    if device == "cpu":
        peaks["finish"] = between + run.heap + REPORT
    free = room.available - resident - parts["allocator"]
    law = facts.law
    return Plan(
        base=facts.base,
        parameters=held.parameters,
        trained=held.trained,
        sites=held.sites,
        parts=parts,
        peaks=peaks,
        process=room.process,
        available=room.available,
        device=device,
        micro_batch=_rows(facts, free, fits=peaks["train"] <= room.available),
        levers=_levers(_use(facts, law.row(facts.length)), least=peaks["train"] // 100),
        checkpointing=facts.checkpointing,
        pace=None if rates is None else pace(facts, rates),
        longest=_length(facts, free),
        adapters=_adapters(facts, room),
        batch=facts.step_rows,
    )


def _rows(facts: Facts, free: int, *, fits: bool) -> int:
    """Return the rows of the largest micro-batch that fits.  free: bytes for a step.  fits: the run's own."""
    most = facts.law.rows(facts.length, free)
    return max(most, facts.rows) if fits else min(most, facts.rows - 1)


def _length(facts: Facts, free: int) -> int:
    """Return how long the longest rows are that fit, of as many as the run has at once."""
    most = facts.law.length(facts.rows, free)
    return most if facts.positions is None else min(most, facts.positions)


def _adapters(facts: Facts, room: Room) -> int:
    """Return how many such adapters fit beside the base in what the machine can give."""
    each = facts.held.parts["adapter"]
    free = room.available - room.process - facts.held.parts["weights"]
    return max(free // each, 0) if each and facts.held.parts["weights"] > each else 0


def _use(facts: Facts, row: float) -> Use:
    """Return the settings of a run and the bytes that each lever could move.  row: bytes of one."""
    held = facts.held
    states = held.parts["optimizer"]
    return Use(
        rows=facts.rows,
        length=facts.length,
        rank=facts.rank,
        row=round(row),
        recomputed=0 if facts.checkpointing else facts.run.tensors - facts.recomputed.tensors,
        states=states - min(states, facts.budget),
        packed=held.packed if facts.quantisable else 0,
        trained=held.parts["adapter"] + held.parts["gradients"] + held.states,
    )


def _levers(use: Use, least: int) -> list[Lever]:
    """Return the three cheapest levers that save more than `least` bytes."""
    return [lever for lever in levers(use) if lever.saves > least][:3]
