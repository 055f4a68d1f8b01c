"""One training and all forms that it is shipped in, in this process: python benchmarks/shipping/one.py NAME RESULTS"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import ours
import result
import tasks
import torch
from llama import LlamaCpp

from graft.base.base import Base
from graft.evaluate.perplexity import perplexity
from graft.models.load import load
from graft.recipe import Recipe, read
from graft.runs import demo
from graft.runs.open import Opened, open_model
from graft.runs.quantise import quantise
from graft.seedling import dataset
from graft.seedling.coverage import mean_coverage
from graft.shipping.export import export

TIMED = 5  # answers
Form = tuple[str, Base | Path, str | None]  # its name; a base, or a GGUF file; the adapter that is attached


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("name")
    words.add_argument("results", type=Path)
    words.add_argument("--steps", type=int)
    words.add_argument("--lr", type=float, help="another rate, for a trial")
    asked = words.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cell = next(cell for cell in grid.cells() if cell.name == asked.name)
    changes = {"steps": asked.steps, "lr": asked.lr}
    cell = replace(
        cell, setting=replace(cell.setting, **{key: value for key, value in changes.items() if value})
    )
    folder = grid.WORK / "runs" / f"{cell.name}.{cell.setting.steps}"
    shutil.rmtree(folder, ignore_errors=True)
    recipe, begun = read(cell.recipe(folder / "run")), time.perf_counter()
    trained = ours.train(recipe)
    facts = {"losses": trained["losses"], "step_seconds": trained["step_seconds"], "forms": {}}
    cases = test(cell)
    for name, form, adapter in forms(cell, recipe, folder):
        facts["forms"][name] = measured(cell, recipe, form, adapter, cases)
    s = cell.setting
    about = {"name": cell.name, "base": s.base, "task": s.task, "line": cell.line, "seed": cell.seed,
             "steps": s.steps, "batch_size": s.batch_size, "r": s.r, "lr": s.lr}  # fmt: skip
    wall = time.perf_counter() - begun
    result.write(
        asked.results / f"{cell.name}.json",
        {"cell": about, "wall_s": wall, **facts, "machine": result.machine()},
    )
    shutil.rmtree(folder, ignore_errors=True)


def forms(cell: grid.Cell, recipe: Recipe, folder: Path) -> Iterator[Form]:
    """What the run is shipped as, one after the other."""
    opened = open_model(recipe.output)
    base, adapter = opened.base, opened.adapter

    def merged(into: str) -> Path:
        return export(base, folder / into, adapter=adapter, into=into, lossy=True)

    def gguf(of: Base, form: str, **how: Any) -> Path:
        written = export(of, folder / f"gguf-{form}", "gguf", type=form, lossy=True, **how)
        return next(written.glob("*.gguf"))

    yield f"{base.quant} + adapter", base, adapter
    plain = merged("dequantised")
    yield "16 bits", load(plain), None
    if cell.line != grid.QLORA:
        yield f"{base.quant}, merged", load(merged("packed")), None
        yield "GGUF Q4_1, merged", gguf(base, "q4_1", adapter=adapter), None
        return
    yield "nf4, packed again", load(merged("packed")), None
    yield "int4, rounded", load(plain, "int4", group_size=grid.GROUP), None
    for bits in grid.BITS.values():
        yield f"{bits}, GPTQ", load(calibrated(cell, str(plain), folder / bits, bits)), None
    yield "GGUF Q4_1, rounded", gguf(load(plain), "q4_1"), None
    yield "GGUF Q8_0", gguf(load(plain), "q8_0"), None


def calibrated(cell: grid.Cell, model: str, folder: Path, bits: str) -> Path:
    """The model packed by GPTQ, with training rows."""
    rows = read({"model": model, "stage": cell.setting.stage, "data": cell.data(grid.CALIBRATION)})
    return quantise(model, folder, bits, group_size=grid.GROUP, calibrate=rows, force=True)


def test(cell: grid.Cell) -> list[tasks.Case]:
    """The task's test; of the seedling the rows that its generator holds out."""
    if cell.setting.task in tasks.TEXT_TASKS:
        return tasks.test_of(cell.material())[0]
    lines = dataset(f"{cell.setting.task}-held-out").read_text(encoding="utf-8").splitlines()
    return [tasks.Case(row["prompt"], [row["completion"]]) for row in map(json.loads, lines)]


def measured(
    cell: grid.Cell, recipe: Recipe, form: Base | Path, adapter: str | None, cases: list[tasks.Case]
) -> dict[str, Any]:
    """Loss, quality of greedy answers, bytes, and tokens a second of greedy decoding, one answer at a time."""
    s, base = cell.setting, load(form) if isinstance(form, Path) else form
    with base.using(adapter):
        loss = perplexity(base, ours.test_feed(cell, recipe, base, cases))["loss"]
    items, _ = demo.held_out()
    real = s.task in tasks.TEXT_TASKS
    prompts = [c.prompt for c in cases] if real else [demo.prompt(item) for item in items]
    if isinstance(form, Path):
        llama = LlamaCpp(form, s.context + s.new_tokens)
        write = lambda some, _: llama([base.tokenizer(text)["input_ids"] for text in some], s.new_tokens)
    else:
        opened = Opened(base, adapter)
        write = lambda some, rows: opened.ask(some, max_new_tokens=s.new_tokens, batch_size=rows)
    begun = time.perf_counter()
    few = write(prompts[:TIMED], 1)
    seconds = time.perf_counter() - begun
    texts = write(prompts, len(prompts))
    quality = ours.text_scores(texts, cases) if real else {"coverage": 100 * mean_coverage(texts, items)}
    tokens = sum(len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in few)
    stored = form.stat().st_size if isinstance(form, Path) else size(base, adapter)
    return quality | {"loss": loss, "bytes": stored, "tokens_per_s": tokens / seconds}


def size(base: Base, adapter: str | None) -> int:
    """Bytes of all tensors, tied ones once."""
    tensors = {t.data_ptr(): t.nbytes for t in base.model.state_dict().values()}
    own = base.adapters[adapter].file_state().values() if adapter else ()
    return sum(tensors.values()) + sum(t.nbytes for t in own)


if __name__ == "__main__":
    main()
