"""Type checkers and editors, which run nothing, know the public names and every keyword."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import graft

ROOT = Path(__file__).resolve().parents[1]

RIGHT = """
from dataclasses import dataclass
from pathlib import Path

import graft


@dataclass(frozen=True, kw_only=True)
class Mine(graft.LoRA):
    strength: float = 1.0


class Losses(graft.Observer):
    pass


def learn(base: graft.Base, adapter: graft.Adapter) -> graft.RunResult:
    return graft.train(base, adapter, data="rows.jsonl", lr=1e-4, epochs=2, schedule="cosine")


base = graft.load("seedling", quant="nf4", device="cpu")
sql = base.attach("sql", graft.LoRA(r=16, target_modules=["q_proj", "v_proj"], modules_to_save=("lm_head",)))
both = base.attach("both", [Mine(r=4, strength=0.5), graft.IA3()])
result: graft.RunResult = learn(base, sql)
print(result.scores["after"]["perplexity"], result.folder / "adapter")
rows = {"train": ["a.jsonl", "b.jsonl"], "max_length": 512}
again = graft.train(base, "sql", rows, output=Path("runs/sql"), max_steps=5)
with base.using(sql):
    texts: list[str] = base.generate("Hello", max_new_tokens=8)
texts = base.generate(["Hello", [{"role": "user", "content": "Hello"}]], adapters=["sql", None], stop=["."])
written: list[graft.Completion] = base.complete(["Hello"], adapters=both, logprobs=2)
folder: Path = graft.export(base, "out", to="peft", adapter=sql)
mixed: graft.Adapter = graft.blend(base, {"sql": 0.5, "both": 0.5}, "mixed")
base.merge(sql)
base.unmerge("sql")
plan: graft.Plan = graft.plan("recipe.yaml")
last: graft.RunResult = graft.run({"model": "seedling"}, ["train.lr=1e-4"])
try:
    base.detach("sql")
except graft.GraftError as error:
    print(error.given, error.remedy)
"""

HEAD = """
import graft

base = graft.load("seedling")
sql = base.attach("sql", graft.LoRA())
"""
WRONG = [
    "graft.nonsense()",
    "graft.LoRA(rr=16)",
    "graft.LoRA(16)",
    'graft.LoRA(r="16")',
    "graft.load(None)",
    'base.attach("x", graft.LoRA)',
    'graft.train(base, sql, data="rows.jsonl", lrr=1e-4)',
    'graft.train(base, sql, data="rows.jsonl", epochs="two")',
    'graft.export(base, "out", too="hf")',
    'base.generate("Hello", max_new_token=5)',
]
CACHE = ROOT / ".mypy_cache" / "typing"  # the next run takes what this one has read
# The checkers follow graft, and nothing that it imports: what is asked here is about its own names.
# Parts that no public signature needs are left out too.
MYPY = """
[mypy]
follow_imports = skip
ignore_missing_imports = True
[mypy-graft.*]
follow_imports = silent
""" + "".join(f"[mypy-graft.{part}.*]\nfollow_imports = skip\n" for part in (
    "kernels", "quant", "formats", "data", "evaluate", "objectives", "seedling", "stages",
))  # fmt: skip


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder with both programs, and the lines of `wrong.py` that are wrong."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(HEAD + "\n".join(WRONG) + "\n")
    (folder / "mypy.ini").write_text(MYPY)
    start = HEAD.count("\n") + 1
    return folder, list(range(start, start + len(WRONG)))


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=600
    ).stdout


@needs("mypy")
def test_mypy_finds_ten_wrong_uses_and_nothing_in_a_right_program(places):
    folder, lines = places
    out = run(
        folder,
        "mypy",
        "--config-file",
        "mypy.ini",
        "--no-error-summary",
        "--cache-dir",
        str(CACHE),
        "right.py",
        "wrong.py",
    )
    assert re.findall(r"^wrong\.py:(\d+): error", out, re.MULTILINE) == [str(line) for line in lines], out
    assert "right.py" not in out, out


@needs("pyright")
def test_pyright_finds_ten_wrong_uses_and_nothing_in_a_right_program(places):
    folder, lines = places
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT / "src")]}))
    out = run(folder, "pyright", "--outputjson", "--pythonpath", sys.executable, "right.py", "wrong.py")
    found = [entry for entry in json.loads(out)["generalDiagnostics"] if entry["severity"] == "error"]
    by_file = {"right.py": [], "wrong.py": []}
    for entry in found:
        by_file[Path(entry["file"]).name].append(entry["range"]["start"]["line"] + 1)
    assert by_file == {"right.py": [], "wrong.py": lines}, out


@needs("jedi")
def test_jedi_completes_the_public_names_alone_and_every_keyword():
    import jedi

    project = jedi.Project(ROOT, added_sys_path=[str(ROOT / "src")])

    def script(text):
        return jedi.Script(f"import graft\n{text}", path=ROOT / "unwritten.py", project=project)

    names = {completion.name for completion in script("graft.").complete()}
    assert {name for name in names if not name.startswith("_")} == set(graft.__all__)
    for call, words in {
        "graft.LoRA(": {"r", "lora_alpha", "target_modules", "lr"},
        "graft.train(": set(inspect.signature(graft.train).parameters),
        "graft.load(": set(inspect.signature(graft.load).parameters),
        "graft.export(": set(inspect.signature(graft.export).parameters),
    }.items():
        (signature,) = script(call).get_signatures()
        assert words <= {parameter.name for parameter in signature.params}, call
    after = {completion.name for completion in script('graft.load("seedling").').complete()}
    assert {"attach", "using", "generate", "merge"} <= after


def test_a_notebook_completes_the_public_names_alone():
    """What completes in a running session reads `dir`."""
    assert {name for name in dir(graft) if not name.startswith("_")} == set(graft.__all__)


def test_the_stub_is_what_its_command_writes():
    spec = importlib.util.spec_from_file_location("write_stub", ROOT / "docs/write_stub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STUB.read_text() == module.stub(), "run `python docs/write_stub.py`"
