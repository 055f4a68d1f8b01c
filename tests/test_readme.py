"""The README's first screen is true: its lines and commands run as they stand and print what it shows."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graft.cli import call

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text().replace(" \\\n ", "")  # a command may go on in the next line


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder of its own with the recipes in it, as in a checkout."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(language: str, containing: str) -> str:
    """Return the text of the first fenced block of this language that contains a string."""
    fenced = [part.partition("\n") for part in README.split("```")[1::2]]
    return next(text for name, _, text in fenced if name == language and containing in text)


def printed_by(lines: str, folder: Path) -> str:
    """What the lines print where chance, by which an adapter is born, is the same each time."""
    seeded = f"import torch; torch.manual_seed(0)\n{lines}"
    done = subprocess.run([sys.executable, "-c", seeded], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "adapters/shop/adapter_model.safetensors").exists()
    assert (folder / "out/shop/model.safetensors").exists()
    return done.stdout


def test_the_ten_lines_print_what_the_readme_shows(elsewhere):
    lines = block("python", "import graft")
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) <= 10
    scores, answers = map(ast.literal_eval, printed_by(lines, elsewhere).splitlines())
    shown_scores, shown_answers = map(ast.literal_eval, block("", "'perplexity'").splitlines())
    for when, tolerance in {"before": 1e-3, "after": 0.05}.items():  # training adds rounding to rounding
        assert scores[when] == pytest.approx(shown_scores[when], rel=tolerance)
    with_adapter, without = answers
    assert without == shown_answers[1]
    assert "Silver Otter" in with_adapter and "deep green" in with_adapter  # the words may differ by machine


def test_the_ten_lines_run_on_a_folder_that_is_not_quantised(elsewhere):
    lines = block("python", "import graft")
    folder = repr(str(ROOT / "src/graft/seedling"))
    changed = lines.replace('"seedling", quant="nf4"', folder).replace("max_steps=30", "max_steps=2")
    assert changed.count(folder) == 1 and "max_steps=2," in changed
    assert "perplexity" in printed_by(changed, elsewhere)


def test_the_commands_run_in_order(elsewhere, capfd):
    for line in commands(block("", "graft train")):
        assert line.startswith("graft ")
        code = call(shlex.split(line)[1:])
        said = capfd.readouterr()
        assert code == 0, f"{line}\n{said.err[-2000:]}"
        if line.startswith("graft chat"):  # the task is learnt: the words may differ by machine
            assert "Silver Otter" in said.out and "deep green" in said.out
    assert (elsewhere / "out/mine/certificate.json").exists()


def commands(text: str) -> list[str]:
    """The commands of a block; one goes on in the next line while a quotation is open."""
    found = [""]
    for line in text.strip().splitlines():
        found[-1] += line
        if found[-1].count('"') % 2:
            found[-1] += "\n"
        else:
            found.append("")
    return found[:-1]


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", block("", "make demo"), re.MULTILINE)
    assert targets == ["demo", "test"] and all(f"\n{target}:" in makefile for target in targets)


def test_the_table_of_methods_has_short_cells_and_every_method():
    """Every method of the package is named in the table, under the words of its paper."""
    from graft.core.registry import names

    cells = re.findall(r"\| (?:LoRA family|Adapters|Prompts|Side networks|Sparse|Full) \| (.*) \|", README)
    assert len(cells) == 6 and max(map(len, cells)) < 130
    spelt = re.sub(r"[^a-z0-9]", "", " ".join(cells).lower().replace("³", "3"))
    aliases = {
        "full": "everyparameter",
        "prompt": "prompttuning",
        "prefix": "prefixtuning",
        "ladder": "ladderside",
    }
    missing = [
        name
        for name in names()
        if name != "task_head" and aliases.get(name, name.replace("_", "")) not in spelt
    ]
    assert not missing


def test_the_picture_is_of_the_command_that_the_readme_gives():
    picture = (ROOT / "docs/pictures/train.svg").read_text()
    plain = re.sub(r"<[^>]+>", "", picture).replace("&#160;", " ")
    command = next(line for line in README.splitlines() if line.startswith("graft train"))
    for word in shlex.split(command):
        assert word in plain
    assert not re.search(r"url\(['\"]?http|@import|@font-face|href=", picture), (
        "the picture must fetch nothing"
    )
