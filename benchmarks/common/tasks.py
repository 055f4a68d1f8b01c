"""The tasks on real data: rows to train on, cases to test with, and the counts of what had to be left out.

    e2e        restaurant attributes -> text      E2E NLG challenge (Novikova et al. 2017), all references
    laptop     laptop attributes -> text          RNNLG (Wen et al. 2016), references grouped by attributes
    acts       text about laptops -> its dialogue act    the same rows, for classifiers
    banking77  question -> one of 77 intents      Casanueva et al. 2020

A row is left out if its text does not fit the base's context or holds a character that its tokenizer does not
know. A test case is left out too if training rows ask the same.
"""

import gzip
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # models and data, next to the checkout
WORK = ROOT / "runs" / "real"
CASES = 100  # attribute sets of the fixed test sample
QUESTIONS = 1000  # questions of the fixed test sample
TEXT_TASKS = ("e2e", "laptop")
FOLDERS = {"e2e": "e2e_nlg", "laptop": "product_laptop", "acts": "product_laptop", "banking77": "banking77"}


@dataclass
class Case:
    """One question of the test.  baselines: answers without any model, by their name."""

    prompt: str
    references: list[str]
    baselines: dict[str, str] = field(default_factory=dict)


@dataclass
class Material:
    """A task as one base can read it.  counts: rows read, used and left out by reason, of train and test."""

    train: list[dict[str, str]]
    test: list[Case]
    counts: dict[str, Any]


class Fit:
    """Keep the texts that a tokenizer knows in full and a context holds, and count the others by reason."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.left_out = Counter[str]()

    def keep(self, rows: list[Any], texts: list[str]) -> Iterator[Any]:
        """Yield the rows whose text fits between a start and an end token."""
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for row, ids in zip(rows, encoded, strict=True):
            reason = self._obstacle(ids)
            if reason:
                self.left_out[reason] += 1
            else:
                yield row

    def _obstacle(self, ids: list[int]) -> str | None:
        if len(ids) + 2 > self.context:
            return f"longer than {self.context} tokens"
        unknown = self.tokenizer.unk_token_id
        return "characters outside the alphabet" if unknown is not None and unknown in ids else None


def e2e_slots(mr: str) -> list[tuple[str, str]]:
    """Return the attributes of a row of E2E.

    >>> e2e_slots("name[Blue Spice], priceRange[less than £20]")
    [('name', 'Blue Spice'), ('priceRange', 'less than £20')]
    """
    return [(slot.strip(), value.strip()) for slot, value in re.findall(r"([^,\[]+)\[([^\]]*)\]", mr)]


def laptop_slots(mr: str) -> list[tuple[str, str]]:
    """Return the dialogue act as the first slot, then the others.

    >>> laptop_slots("inform_all(type=laptop;batteryrating=standard)")
    [('inform all', ''), ('type', 'laptop'), ('batteryrating', 'standard')]
    """
    act, _, body = mr.partition("(")
    pairs = [slot.partition("=") for slot in body.rstrip(")").split(";") if slot]
    return [(_plain(act), ""), *((_plain(slot), _plain(value)) for slot, _, value in pairs)]


def prompt(slots: Iterable[tuple[str, str]]) -> str:
    """Return attributes as one line, like the LoRA paper's E2E prompts (Hu et al. 2021, appendix C).

    >>> prompt([("name", "Blue Spice"), ("eatType", "pub")])
    'name: Blue Spice | eatType: pub ||'
    """
    return " | ".join(f"{slot}: {value}" if value else slot for slot, value in slots) + " ||"


def copy(slots: Iterable[tuple[str, str]]) -> str:
    """Return the trivial answer: the values in their order."""
    return " ".join(value for _, value in slots if value)


def material(task: str, tokenizer: Any, context: int) -> Material:
    """Return the task's rows and test cases that fit this tokenizer and context, always the same ones."""
    train, test = _read(task, "train"), _read(task, "test")
    if task not in TEXT_TASKS:
        return _questions(train, test, Fit(tokenizer, context))
    slots = e2e_slots if task == "e2e" else laptop_slots
    rows = [{"prompt": prompt(slots(row["mr"])), "completion": row["ref"]} for row in train]
    fit, held = Fit(tokenizer, context), Fit(tokenizer, context)
    kept = list(fit.keep(rows, [f"{row['prompt']} {row['completion']}" for row in rows]))
    cases = _cases(test, slots)
    seen = {row["prompt"] for row in rows}
    unseen = [case for case in cases if case.prompt not in seen]
    # The loss is measured on the first reference.
    fitting = list(held.keep(unseen, [f"{c.prompt} {c.references[0]}" for c in unseen]))
    chosen = random.Random(0).sample(fitting, min(CASES, len(fitting)))
    left_out = dict(held.left_out)
    if len(cases) > len(unseen):
        left_out["asked in training"] = len(cases) - len(unseen)
    return Material(kept, chosen, _counts(rows, kept, fit.left_out, cases, fitting, left_out, chosen))


def subset(rows: list[dict[str, str]], size: int | None) -> list[dict[str, str]]:
    """Return a fixed sample of rows, with equal numbers from each class as far as there are enough."""
    if size is None or size >= len(rows):
        return rows
    shuffled = random.Random(0).sample(rows, len(rows))
    rank = Counter[str]()
    if "label" not in rows[0]:
        return shuffled[:size]
    turns = []
    for row in shuffled:
        turns.append((rank[row["label"]], len(turns)))
        rank[row["label"]] += 1
    return [shuffled[i] for _, i in sorted(turns)[:size]]


def stored(base: str, task: str, tokenizer: Any, context: int) -> Path:
    """Return the folder with this material, written once: the files of `train_file`, and test.json."""
    folder = WORK / "data" / f"{base}.{task}"
    if not (folder / "test.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fitting = material(task, tokenizer, context)
        for size in (None, 500, 1000):
            lines = [json.dumps(row, ensure_ascii=False) for row in subset(fitting.train, size)]
            train_file(folder, size).write_text("\n".join(lines) + "\n", encoding="utf-8")
        facts = {"counts": fitting.counts, "cases": [asdict(case) for case in fitting.test]}
        partial = folder / "test.json.partial"
        partial.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
        partial.replace(folder / "test.json")
    return folder


def train_file(folder: Path, size: int | None) -> Path:
    """Return the file in which `stored` put so many rows; None means all."""
    return folder / f"train-{size or 'all'}.jsonl"


def test_of(folder: Path) -> tuple[list[Case], dict[str, Any]]:
    """Return (cases, counts) of a stored material."""
    facts = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    return [Case(**case) for case in facts["cases"]], facts["counts"]


def data(train: Path | str, setting: Any) -> dict[str, Any]:
    """Return the `data` of a recipe: these rows, unpacked, without a held-out part."""
    return {"train": str(train), "eval": None, "max_length": setting.context, "pack": False}


def training(setting: Any, lr: float, seed: int, output: Path) -> dict[str, Any]:
    """Return the part of a recipe that says how long, at which rate and into which folder it trains."""
    rows = {"batch_size": setting.batch_size, "micro_batch_size": setting.batch_size}
    return {
        "train": {"max_steps": setting.steps, **rows, "lr": lr, "seed": seed, "save_every": setting.steps},
        "evaluate": {"batch_size": 50},
        "output": str(output),
    }


def model_folder(base: str) -> Path:
    """Return the folder of a base.

    book-llama-6m learnt texts that begin with <s>, but its tokenizer writes none: that of our copy does.
    """
    origin = SHARED / "models" / base
    if base != "book-llama-6m":
        return origin
    ours = WORK / "models" / base
    if not (ours / "tokenizer.json").exists():
        ours.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"):
            shutil.copyfile(origin / name, ours / name)
        tokenizer = Tokenizer.from_file(str(origin / "tokenizer.json"))
        start = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
        tokenizer.save(str(ours / "tokenizer.json"))
    return ours


def _plain(word: str) -> str:
    return word.replace("_", " ").strip()


def _read(task: str, split: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data" / FOLDERS[task] / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{"text": row["ref"], "label": row["act"]} for row in rows] if task == "acts" else rows


def _cases(rows: list[dict[str, Any]], slots: Any) -> list[Case]:
    """Return the cases; rows that ask the same are one case with all their references."""
    cases: dict[str, Case] = {}
    for row in rows:
        parts = slots(row["mr"])
        case = cases.setdefault(prompt(parts), Case(prompt(parts), [], {"copy of the values": copy(parts)}))
        case.references += row.get("refs") or [row["ref"]]
        if "baseline" in row:
            case.baselines.setdefault("handcrafted rules of the data set", row["baseline"])
    return list(cases.values())


def _questions(train: list[dict[str, Any]], test: list[dict[str, Any]], fit: Fit) -> Material:
    kept = list(fit.keep(train, [row["text"] for row in train]))
    held = Fit(fit.tokenizer, fit.context)
    fitting = list(held.keep(test, [row["text"] for row in test]))
    chosen = random.Random(0).sample(fitting, min(QUESTIONS, len(fitting)))
    majority = Counter(row["label"] for row in kept).most_common(1)[0][0]
    cases = [Case(row["text"], [row["label"]], {"majority class": majority}) for row in chosen]
    return Material(kept, cases, _counts(train, kept, fit.left_out, test, fitting, held.left_out, cases))


def _counts(
    train: list[Any], kept: list[Any], out: Any,
    test: list[Any], fitting: list[Any], test_out: Any, chosen: list[Any],
) -> dict[str, Any]:  # fmt: skip
    return {
        "train": {"read": len(train), "used": len(kept), "left_out": dict(out)},
        "test": {"read": len(test), "fit": len(fitting), "used": len(chosen), "left_out": dict(test_out)},
    }
