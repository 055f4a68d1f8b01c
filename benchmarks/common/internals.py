"""The names of Graft that are not public and that benchmarks need: nothing else here imports from inside the
package.

Everything else goes through `graft.run`, `graft.load`, `graft.export`, `graft.plan`, `Base` and the methods'
classes. A name is imported when it is first used, so that tables are made without importing torch.
"""

import importlib
from typing import Any

_HOME = {
    # The peer gets exactly our batches, and both tools the same test: rows are encoded and fed as in a run.
    "Encoder": "data.encode",
    "Feed": "data.feed",
    "Row": "data.rows",
    "prepare": "data",
    "prompt_ids": "data",
    "feed": "runs.build",
    # The base and the untrained methods of a recipe, as a run has them before its first step; a finished run.
    "read": "recipe",
    "load_base": "runs.build",
    "methods_of": "runs.build",
    "Opened": "runs.open",
    "open_model": "runs.open",
    # What a run reports, and how it stops: memory is measured in between, and divergence is a result.
    "RunObserver": "runs.run",
    "Interrupted": "training.signals",
    "TrainingError": "errors",
    # The measures of the tables.
    "accuracy": "evaluate.metrics",
    "bleu": "evaluate.metrics",
    "macro_f1": "evaluate.metrics",
    "rouge_l": "evaluate.metrics",
    "classes": "evaluate.perplexity",
    "perplexity": "evaluate.perplexity",
    # methods: which methods have a file, and where they sit.
    "cards": "core.cards",
    # shipping: the seedling's test rows and their measure; GPTQ.
    "dataset": "seedling",
    "mean_coverage": "seedling.coverage",
    "demo": "runs",
    "quantise": "runs.quantise",
    # memory, ladder.py: one step without a run around it, and the planner's own parts.
    "Batch": "data.feed",
    "packed": "data.pack",
    "fresh": "models.fresh",
    "language_modelling": "objectives.lm",
    "Shape": "planning.plan",
    "plan_model": "planning.plan",
    "Ledger": "planning.sketch",
    "QuantLinear": "quant",
    "quantise_model": "quant",
    "build_optimizer": "training.optimizers",
    "Pages": "training.paging",
    "measure": "training.step",
    # ipt.py: the paper's first step is no public function.
    "find_subspace": "methods.ipt",
    # reliability/errors.py damages a copy of the seedling.
    "SEEDLING": "seedling",
}
_INSIDE = {"build_optimizer": "build", "SEEDLING": "FOLDER"}  # what they are called there


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"benchmarks use no {name!r} of Graft: add it to the table in {__file__}")
    module, inside = importlib.import_module(f"graft.{_HOME[name]}"), _INSIDE.get(name, name)
    if not hasattr(module, inside):  # a module of a package
        return importlib.import_module(f"graft.{_HOME[name]}.{inside}")
    return getattr(module, inside)
