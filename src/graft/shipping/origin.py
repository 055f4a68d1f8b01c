"""The run behind an export: rows of its own to measure with, and what the model card says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft.shipping import provenance
from graft.shipping.prompts import Prompts


@dataclass(frozen=True)
class Origin:
    """A run, as far as an export speaks of it.

    folder: of the run.  prompts: rows of its own; None where none can be read.
    training: facts in words, by name.  scores: {column: {metric: value}}, the trained model last.
    scored: which rows the scores are about, in words.  data: names of the rows' files.
    datasets: hub ids among them.
    """

    folder: Path
    prompts: Prompts | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scored: str = ""
    data: Sequence[str] = ()
    datasets: Sequence[str] = ()

    def prompts_for(self, folder: Path) -> Prompts | None:
        """Return the prompts, with the way from an exported folder to the run whose rows they are."""
        if self.prompts is None:
            return None
        found = {"run": provenance.last_name(self.folder), "path": provenance.way(self.folder, folder)}
        return replace(self.prompts, source={**found, **self.prompts.source})
