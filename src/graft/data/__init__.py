"""Data: files become rows with `file:line`, rows become examples, examples become the batches of a step.

    read -> layouts -> templates, mask -> encode -> (cache) -> batches, feed, with noise and pack

`prepare` does the first half; `graft.data.feed.Feed` the second, and only it imports torch.
"""

from graft.data.encode import IGNORED, Example, Examples
from graft.data.preparation import Loaded, Prepared, load_rows, prepare
from graft.data.report import DataReport
from graft.data.rows import Reject, Row
from graft.data.templates import prompt_ids

__all__ = [
    "IGNORED", "DataReport", "Example", "Examples", "Loaded", "Prepared", "Reject", "Row", "load_rows", "prepare",
    "prompt_ids",
]  # fmt: skip
