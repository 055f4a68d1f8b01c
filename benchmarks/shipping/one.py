"""One training and all forms in which it is shipped, in this process: python benchmarks/shipping/one.py
NAME"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import ours
import tasks
import work
from columns import RESULTS
from llama import LlamaCpp

import graft

TIMED = 5  # answers
Form = tuple[graft.Base | Path, str | None]  # a base, or a GGUF file; the adapter that is attached


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def describe(cell: grid.Cell) -> dict[str, Any]:
    """Return the run in words and numbers."""
    s = cell.setting
    return {
        "base": s.base, "task": s.task, "line": cell.line, "seed": cell.seed, "steps": s.steps,
        "batch_size": s.batch_size, "r": s.r, "lr": s.lr,
    }  # fmt: skip


def carry_out(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train, then measure every form."""
    recipe = internals.read(cell.recipe(folder / "run"))
    facts = ours.train(recipe)
    cases = test(cell)
    measures = {
        name: measured(cell, recipe, form, adapter, cases)
        for name, (form, adapter) in zip(grid.FORMS[cell.line], forms(cell, recipe, folder), strict=True)
    }
    return facts | {"forms": measures}


def forms(cell: grid.Cell, recipe: graft.Recipe, folder: Path) -> Iterator[Form]:
    """Yield what the run is shipped as, in the order of `grid.FORMS`."""
    opened = internals.open_model(recipe.output)
    base, adapter = opened.base, opened.adapter

    def merged(into: str) -> Path:
        return graft.export(base, folder / into, adapter=adapter, into=into, lossy=True)

    def gguf(of: graft.Base, form: str, **how: Any) -> Path:
        written = graft.export(of, folder / f"gguf-{form}", "gguf", type=form, lossy=True, **how)
        return next(written.glob("*.gguf"))

    yield base, adapter
    plain = merged("dequantised")
    yield graft.load(plain), None
    if cell.line != grid.QLORA:
        yield graft.load(merged("packed")), None
        yield gguf(base, "q4_1", adapter=adapter), None
        return
    yield graft.load(merged("packed")), None
    yield graft.load(plain, "int4", group_size=grid.GROUP), None
    for bits in grid.BITS.values():
        yield graft.load(calibrated(cell, str(plain), folder / bits, bits)), None
    yield gguf(graft.load(plain), "q4_1"), None
    yield gguf(graft.load(plain), "q8_0"), None


def calibrated(cell: grid.Cell, model: str, folder: Path, bits: str) -> Path:
    """Pack a model by GPTQ with training rows, and return its folder."""
    rows = internals.read({"model": model, "stage": cell.setting.stage, "data": cell.data(grid.CALIBRATION)})
    return internals.quantise(model, folder, bits, group_size=grid.GROUP, calibrate=rows, force=True)


def test(cell: grid.Cell) -> list[tasks.Case]:
    """Return the task's test; for the seedling the rows that its generator holds out."""
    if cell.setting.task in tasks.TEXT_TASKS:
        return tasks.test_of(cell.material())[0]
    lines = internals.dataset(f"{cell.setting.task}-held-out").read_text(encoding="utf-8").splitlines()
    return [tasks.Case(row["prompt"], [row["completion"]]) for row in map(json.loads, lines)]


def measured(
    cell: grid.Cell,
    recipe: graft.Recipe,
    form: graft.Base | Path,
    adapter: str | None,
    cases: list[tasks.Case],
) -> dict[str, Any]:
    """Return loss, quality of greedy answers, bytes, and tokens per second of greedy decoding, one answer at
    a time."""
    s = cell.setting
    base = graft.load(form) if isinstance(form, Path) else form
    with base.using(adapter):
        loss = internals.mean_loss(recipe, base, ours.test_feed(recipe, base, cases))
    items, _ = internals.demo.held_out()
    real = s.task in tasks.TEXT_TASKS
    prompts = [c.prompt for c in cases] if real else [internals.demo.prompt(item) for item in items]
    if isinstance(form, Path):
        llama = LlamaCpp(form, s.context + s.new_tokens)

        def write(some: list[str], rows: int) -> list[str]:
            return llama([base.tokenizer(text)["input_ids"] for text in some], s.new_tokens)

    else:
        opened = internals.Opened(base, adapter)

        def write(some: list[str], rows: int) -> list[str]:
            return opened.ask(some, max_new_tokens=s.new_tokens, batch_size=rows)

    begun = time.perf_counter()
    few = write(prompts[:TIMED], 1)
    seconds = time.perf_counter() - begun
    texts = write(prompts, len(prompts))
    quality = (
        ours.text_scores(texts, cases) if real else {"coverage": 100 * internals.mean_coverage(texts, items)}
    )
    tokens = sum(len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in few)
    stored = form.stat().st_size if isinstance(form, Path) else size(base, adapter)
    return quality | {"loss": loss, "bytes": stored, "tokens_per_s": tokens / seconds}


def size(base: graft.Base, adapter: str | None) -> int:
    """Return the bytes of all tensors, tied ones once."""
    tensors = {t.data_ptr(): t.nbytes for t in base.model.state_dict().values()}
    own = base.adapters[adapter].file_state().values() if adapter else ()
    return sum(tensors.values()) + sum(t.nbytes for t in own)


if __name__ == "__main__":
    main()
