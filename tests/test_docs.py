"""The documents name only what exists: files, tests, links, commands, options and keys."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from graft.cli import app
from graft.recipe.tree import explain

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs/quickstart").glob("*.md"),
    ROOT / "examples/README.md",
]
NAMED = re.compile(r"(?<![\w/.-])((?:src|tests|benchmarks|docs|recipes|examples)/[\w./-]*[\w/])")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")

pages = pytest.mark.parametrize("page", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))


def missing(paths: list[str], folder: Path = ROOT) -> list[str]:
    """Return the paths that are not there; `NAME` stands for a file that a reader writes."""
    inside = [(folder / path).resolve() for path in paths if "NAME" not in path]
    return [path.relative_to(ROOT).as_posix() for path in inside if not path.exists()]


@pages
def test_every_link_leads_to_a_file(page):
    text = page.read_text().replace("\\", "")
    assert not missing(LINK.findall(text), page.parent)


@pages
def test_every_path_that_is_named_exists(page):
    text = page.read_text().replace("\\", "")
    assert not missing([path.rstrip("./") for path in NAMED.findall(LINK.sub("", text))])


def commands(page: Path) -> list[str]:
    """Return the command lines of a page: indented, or fenced as sh, or as nothing."""
    text = page.read_text().replace(" \\\n ", "")  # a command may go on in the next line
    fenced = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL))
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [line.strip() for line in [*fenced.splitlines(), *indented]]


def test_every_pytest_line_of_the_evidence_selects_a_test():
    """The words after -k stand in a test's name, id or file, as pytest matches them."""
    lines = [line for line in commands(ROOT / "docs/evidence.md") if line.startswith("pytest ")]
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line)[1:]
        at = words.index("-k") if "-k" in words else len(words)
        files = [
            f
            for p in words[:at]
            for f in ([ROOT / p] if p.endswith(".py") else (ROOT / p).rglob("test_*.py"))
        ]
        assert files, line
        sources = " ".join(f"{file.stem} {file.read_text()}" for file in files).lower()
        for word in re.split(r" or ", words[at + 1]) if at < len(words) else []:
            assert word.lower() in sources, line


def test_every_script_of_the_evidence_exists():
    for line in commands(ROOT / "docs/evidence.md"):
        kind, *words = shlex.split(line)
        assert kind in ("pytest", "python", "make", "graft"), line
        assert kind != "python" or not missing(words[:1]), line


def graft_lines() -> list[str]:
    """Return every `graft ...` of the documents, in code blocks and in single backquotes."""
    found = []
    for page in WRITTEN:
        quoted = re.findall(r"`(graft [a-z][^`]*)`", page.read_text())
        found += [line for line in [*commands(page), *quoted] if line.startswith("graft ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", graft_lines())
def test_every_command_has_its_verb_options_and_keys(line):
    words = shlex.split(line.partition(" #")[0])[1:]
    command = typer.main.get_command(app).commands.get(words[0])
    assert command or words[0].startswith("-"), line
    if hasattr(command, "commands"):
        command = command.commands[words[1]]
    options = {name for parameter in command.params for name in parameter.opts} if command else {"--help"}
    keys = {*explain(), "lr"}
    for word in words[1:]:
        if word.startswith("--") and "." not in word:
            assert word.partition("=")[0] in options | {"--help"}, f"{line}: {word}"
        elif words[0] == "train" and re.match(r"[a-z_.]+=", word):
            key = word.partition("=")[0]
            assert key in keys or key.partition(".")[2] in keys, f"{line}: {word}"  # maybe of one stage


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for page in [*WRITTEN, ROOT / ".github/workflows/test.yml"]:
        for target in re.findall(
            r"make (demo|test|slow|families|faults|docs|format|setup|check|quick)\b", page.read_text()
        ):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"


def test_the_tree_of_the_tour_is_that_of_the_checkout():
    """Every folder is drawn, in the order of the layer test; of four of them exactly the files."""
    tree = (ROOT / "docs/tour.md").read_text().partition("```text\n")[2].partition("```")[0]
    drawn = re.findall(r"^  (\w+)(?:/|\.py)", tree, re.MULTILINE)
    folder = ""
    files = {}
    for line in tree.splitlines():
        if opened := re.match(r"  (\w+)/", line):
            folder = opened[1]
        elif inner := re.match(r"    (\w+\.py)", line):
            files.setdefault(folder, set()).add(inner[1])
    order = ast.literal_eval(
        re.search(r"ORDER = (\[.*?\])", (ROOT / "tests/test_layers.py").read_text(), re.DOTALL)[1]
    )
    assert [name for name in drawn if name != "__init__"] == order
    assert set(files) == {"core", "base", "stages", "serve"}
    for name in sorted(files):
        here = {path.name for path in (ROOT / "src/graft" / name).glob("*.py")} - {"__init__.py"}
        assert files[name] == here, name


def test_no_table_cell_of_the_documents_is_a_paragraph():
    for page in WRITTEN:
        cells = [
            cell for line in page.read_text().splitlines() if line.startswith("|") for cell in line.split("|")
        ]
        assert max(map(len, cells), default=0) <= 130, page.name


def test_the_changelog_says_what_is_released():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "Unreleased"
    tags = subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for version in re.findall(r"^## (\d+\.\d+\.\d+) \(not released\)", text, re.MULTILINE):
        assert version not in tags and f"v{version}" not in tags
