"""Build the site: assemble its pages in build/docs, then let mkdocs make HTML of them in site/.

    python docs/build_site.py            needs the extra "docs" (`make docs` installs it)

Pages come from the files that people read in the checkout. Three are generated: the command line from the
help of every verb, the Python page from the docstrings of the public names, the recipes from `recipes/`. A
link to a file that is no page of the site becomes plain text, since the site stands alone.
"""

import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer

import graft
from graft.cli import app, call
from graft.core.cards import cards

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs"
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "examples/README.md": "examples.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")
CODE = re.compile(r"`[^`\n]*`")  # GitHub wants \| in the code of a table, mkdocs wants |
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^):]+)\)")


def place_of(path: Path) -> Path | None:
    """Return where a file of the checkout lies in the site, relative to its root; None if it is no page."""
    name = path.relative_to(ROOT).as_posix()
    if name in FROM_ROOT:
        return Path(FROM_ROOT[name])
    if name in ("recipes", "examples"):
        return Path(f"{name}.md")
    inside = name.startswith("docs/") and path.suffix in (".md", ".svg", ".png", ".css")
    return Path(name.removeprefix("docs/")) if inside else None


def with_site_links(text: str, source: Path) -> str:
    """Point the links of a page at the pages of the site. `source` is the page's file in the checkout."""
    here = place_of(source)
    assert here is not None

    def moved(target: str) -> str | None:
        place = place_of((source.parent / target).resolve())
        return None if place is None else os.path.relpath(place, here.parent)

    def link(match: re.Match[str]) -> str:
        target = moved(match[2])
        return match[1] if target is None else f"[{match[1]}]({target}{match[3] or ''})"

    text = LINK.sub(link, text)
    return PICTURE.sub(lambda match: f"![{match[1]}]({moved(match[2])})", text)


def copy_pages() -> None:
    """Copy every page of the checkout, and its pictures."""
    sources = [ROOT / name for name in FROM_ROOT] + [
        p for p in sorted((ROOT / "docs").rglob("*")) if place_of(p)
    ]
    for source in sources:
        place = place_of(source)
        assert place is not None
        target = PAGES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = with_site_links(source.read_text(), source)
            target.write_text(CODE.sub(lambda code: code[0].replace("\\|", "|"), text))
        else:
            shutil.copy(source, target)


def printed_by(*words: str) -> str:
    """Return what a command line prints on stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = call(list(words))
    assert code == 0, f"graft {' '.join(words)}: exit code {code}"
    return out.getvalue().strip()


def command_line_page() -> str:
    """Return the help of every verb."""
    verbs = []
    for name, command in typer.main.get_command(app).commands.items():
        verbs += [f"{name} {part}" for part in getattr(command, "commands", {})] or [name]
    text = ["# Command line", "", "```text", printed_by("--help"), "```", ""]
    for verb in verbs:
        text += [f"## graft {verb}", "", "```text", printed_by(*verb.split(), "--help"), "```", ""]
    return "\n".join(text)


def python_page() -> str:
    """Return the public names: mkdocstrings fills in their docstrings, a method has a page of its own."""
    methods = {card.cls: card for card in cards().values()}
    others = [name for name in graft.__all__ if name not in methods]
    text = [
        "# Python",
        "",
        "`import graft` gives these names. Nothing heavy is imported before one is used.",
        "",
    ]
    for title, wanted in (("Functions", True), ("Classes", False)):
        names = [name for name in others if name.islower() is wanted]
        text += [f"## {title}", "", *[entry(name) for name in names]]
    text += [
        "## Methods",
        "",
        *[f"- [{name}](methods/{card.name}.md): {card.title}" for name, card in methods.items()],
    ]
    return "\n".join(text)


def entry(name: str) -> str:
    """Return the entry of a public name; mkdocstrings finds no class in a folder without `__init__.py`."""
    value = getattr(graft, name)
    folder = Path(inspect.getfile(value)).parent
    if (folder / "__init__.py").exists():
        return f"::: {value.__module__}.{name}\n"
    doors = [(door, inspect.getdoc(member)) for door, member in vars(value).items() if door[0] != "_"]
    rows = [f"- `{door}`: {text.splitlines()[0]}" for door, text in doors if text]
    module = f"`{value.__module__}`: see [how to add a stage](CONTRIBUTING.md)."
    return "\n".join([f"### {name}", "", inspect.getdoc(value) or "", "", module, "", *rows, ""])


def recipes_page() -> str:
    """Return every recipe, and every key with its default and help."""
    text = [
        "# Recipes",
        "",
        "A recipe is a YAML file. Any key can be changed on the command line: `graft train`",
        "`recipes/sft.yaml model=MODEL data.train=rows.jsonl train.lr=1e-4`.",
        "",
    ]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text += [f"## {path.name}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join([*text, "## Every key", "", "```yaml", printed_by("train", "--keys"), "```", ""])


def assemble() -> None:
    """Write all pages into build/docs."""
    shutil.rmtree(PAGES, ignore_errors=True)
    copy_pages()
    for name, page in {"cli": command_line_page, "api": python_page, "recipes": recipes_page}.items():
        (PAGES / f"{name}.md").write_text(page() + "\n")


def fetched() -> list[str]:
    """Return what pages of the built site would load from another host: scripts, pictures, styles, fonts."""
    loads = re.compile(r'(?:src="|<link[^>]* href="|url\(|@import )(https?:[^"\')]+)')
    return sorted(
        {url for path in (ROOT / "site").rglob("*.html") for url in loads.findall(path.read_text())}
    )


def build() -> int:
    """Assemble the pages and build the site. Returns an exit code."""
    assemble()
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        "docs/mkdocs.yml",
    ]
    code = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "true"}).returncode
    if code == 0 and fetched():
        print(f"pages fetch from elsewhere: {', '.join(fetched())}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"  # of the help texts
    sys.exit(build())
