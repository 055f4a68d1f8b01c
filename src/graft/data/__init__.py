"""Data: files become rows with `file:line`, rows become examples, examples become the batches of a step.

    folders, read, read_json, read_tables, read_text    files     -> records
    in_memory, kept_rows, rows_given                    rows in memory -> files in the folder of their run
    columns, layouts, normal_form, messages, tags       records   -> rows; advice about unknown columns
    preferences, scores                                 the same for rows that compare answers
    trees, votes, convert                               records of other kinds -> rows
    templates, chat_templates, tool_calls               rows      -> text
    rendering, template_worker, sandbox, writer         the process in which templates run, and its limits
    turns, places, marks                                where the assistant speaks; what the text leaves out
    unpack, tokenising                                  limits of packed files, and of texts at once
    mask, encode, conversations, answers                text      -> examples
    preparation, report, pairs, cache, token_file       all of this at once, reported and kept
    row_store, scratch                                  what of it lies on the disk where there is much
    batches, answer_batches, pack, noise, feed          examples  -> the batches of a step

`prepare` does everything up to the examples; `graft.data.feed.Feed` makes the batches. Only the last line
imports torch.
"""

from graft.data.encode import IGNORED, Example, Examples
from graft.data.preparation import Loaded, Prepared, load_rows, prepare
from graft.data.report import DataReport, RejectedRows
from graft.data.rows import Reject, Row
from graft.data.templates import prompt_ids

__all__ = [
    "IGNORED",
    "DataReport",
    "Example",
    "Examples",
    "Loaded",
    "Prepared",
    "Reject",
    "RejectedRows",
    "Row",
    "load_rows",
    "prepare",
    "prompt_ids",
]
