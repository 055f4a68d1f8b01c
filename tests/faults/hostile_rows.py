"""Hostile rows and chat templates, tried through the doors that read rows."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recorder
import victims
from mutations import as_json, damaged, mutated

import graft
from graft.data import prepare
from graft.data.preparation import load_rows
from graft.recipe import read
from graft.stages.stage import stage_of

WORDS = ("user", "assistant", "system", "tool", "text", "prompt", "completion", "label", "chosen", "rejected")

ROWS: list[dict[str, Any]] = [
    {"prompt": "What?", "completion": "This."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"text": "Once upon a time", "label": "story"},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]},
        {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]},
]  # fmt: skip
STAGES = {0: "sft", 1: "sft", 2: "sft", 3: "sft", 4: "classify", 5: "dpo", 6: "sft"}


def encoded(settings: Any, base: Any, stage: Any) -> None:
    """Do all that a run does with rows before its first step, without the cache."""
    sizes = {"family": base.family, "vocabulary": base.vocabulary}
    prepare(settings, base.tokenizer, stage, **sizes, cache=False)


def rows_target(folder: Path) -> Callable[[int], object]:
    """Read a mutated file of rows; every eighth is also encoded."""
    home = victims.home(folder / "home")
    base = graft.load(str(home / "model"))
    recipes = {}
    for stage in ("sft", "classify", "dpo", "pretrain"):
        data = {"eval": None, "max_length": 64, "bad_rows": "skip"}
        chosen = victims.settings(
            home, folder / "run", data=data, stage=stage, evaluate={"metrics": []}, train={"samples": []}
        )
        recipes[stage] = read(chosen)

    def attempt(number: int) -> None:
        chance = random.Random(f"rows {number}")
        place = recorder.cleared(folder / "state")
        place.mkdir()
        kind = chance.randrange(len(ROWS))
        path = (
            place
            / f"rows.{chance.choice(['jsonl', 'jsonl', 'json', 'csv', 'tsv', 'txt', 'jsonl.gz', 'conll'])}"
        )
        path.write_bytes(row_file(path.name, ROWS[kind], chance))
        chosen = recipes[STAGES[kind] if chance.random() < 0.9 else chance.choice(list(recipes))]
        settings = chosen.data.model_copy(update={"train": str(path)})
        if chance.random() < 0.2:
            settings = settings.model_copy(update={"bad_rows": "strict"})
        stage = stage_of(chosen)
        if number % 8:
            loaded = load_rows(settings, stage.accepts())
            if loaded.read < len(loaded.train) + len(loaded.rejects):
                raise AssertionError("more rows are told than were read")
        else:
            prepare(
                settings, base.tokenizer, stage, family=base.family, vocabulary=base.vocabulary, cache=False
            )

    return attempt


def row_file(name: str, row: dict[str, Any], chance: random.Random) -> bytes:
    """Return a file of eight rows, some of them or its bytes changed."""
    rows = [mutated(row, chance) if chance.random() < 0.4 else row for _ in range(8)]
    if name.endswith(("csv", "tsv")):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(list(row))
        for one in rows:
            writer.writerow([str(value) for value in (one.values() if isinstance(one, dict) else [one])])
        data = text.getvalue().encode("utf-8", "surrogatepass")
    elif name.endswith("json"):
        data = as_json(rows if chance.random() < 0.8 else {"data": rows}, chance)
    elif name.endswith(("txt", "conll")):
        data = "".join(
            f"{chance.choice(WORDS)} {i} O\n{chance.choice(['', chr(10)])}" for i in range(9)
        ).encode()
    else:
        data = b"\n".join(as_json(one, chance) for one in rows)
    if chance.random() < 0.4:
        data = damaged(data, chance)
    if name.endswith("gz"):
        data = gzip.compress(data if chance.random() < 0.97 else b" " * 300_000_000)
        data = damaged(data, chance) if chance.random() < 0.3 else data
    return data


SHELL = "{% for m in messages %}{{ m['role'] }}: BODY{{ m['content'] }}{{ eos_token }}{% endfor %}"
GROW = (
    "{% set n = namespace(x=[1]) %}{% for i in range(TIMES) %}{% set n.x = STEP %}{% endfor %}"
    "{{ n.x | tojson }}"
)
BODIES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ range(10 ** 9) | list | length }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ range(99999) | map('string') | join('a' * 99999) }}",
    "{{ 1 // 0 }}",
    "{{ nothing.here.at_all }}",
    "{{",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ raise_exception('a' * 10 ** 9) }}",
    GROW.replace("TIMES", "99").replace("STEP", "[n.x, n.x]"),
    GROW.replace("TIMES", "99999").replace("STEP", "[n.x]"),
    "{{ lipsum(n=9999) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages.append(1) }}",
    "\0",
    "{% for i in range(10 ** 6) %}{{ i | string | replace('1', 'a' * 9999) }}{% endfor %}",
]


def templates_target(folder: Path) -> Callable[[int], object]:
    """Prepare conversations with a hostile chat template; nothing may be run."""
    home = victims.home(folder / "home")
    base = graft.load(str(home / "model"))
    (folder / "rows.jsonl").write_text("".join(json.dumps(ROWS[1]) + "\n" for _ in range(4)))
    path = folder / "template.jinja"
    data = {"train": str(folder / "rows.jsonl"), "eval": None}

    def attempt(number: int) -> None:
        chance = random.Random(f"templates {number}")
        body = BODIES[number % len(BODIES)]
        round_, _ = divmod(number, len(BODIES))
        if round_:  # later rounds: two bodies, or a damaged one
            body += chance.choice(BODIES)
            body = damaged(body.encode(), chance).decode("utf-8", "replace") if round_ % 2 else body
        path.write_text(SHELL.replace("BODY", body), encoding="utf-8", errors="replace")
        chosen = read(
            victims.settings(home, folder / "run", data=data | {"template": str(path)}, train={"samples": []})
        )
        try:
            prepare(
                chosen.data,
                base.tokenizer,
                stage_of(chosen),
                family=base.family,
                vocabulary=base.vocabulary,
                cache=False,
            )
        finally:
            if Path("CANARY").exists():
                raise AssertionError("a template has run a program")

    return attempt
