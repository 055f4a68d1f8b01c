"""The order of folders: a file imports files of its own folder and of the folders above it in this list."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "graft"
ORDER = [
    "errors",
    "storage",
    "sizes",
    "kernels",
    "quant",
    "core",
    "layers",
    "formats",
    "recipe",
    "data",
    "seedling",
    "generate",
    "base",
    "methods",
    "models",
    "objectives",
    "stages",
    "training",
    "evaluate",
    "combine",
    "shipping",
    "planning",
    "runs",
    "serve",
    "cli",
]

pytestmark = pytest.mark.quick


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the dotted names under graft that a file imports, for type checkers and late ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("graft."))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "graft":
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def room(dotted: str) -> str:
    """Return the folder, or the module of the root, that a dotted name lies in."""
    return dotted.split(".")[1]


def dotted_name(path: Path) -> str:
    """Return the name under which a file is imported."""
    return "graft." + ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def files() -> list[Path]:
    """Return every file of the package but the one that lists the public names."""
    return [path for path in sorted(SRC.rglob("*.py")) if path != SRC / "__init__.py"]


def upward() -> list[str]:
    """Return every import that goes to a later folder."""
    return [
        f"{path.relative_to(SRC)} imports {name}"
        for path in files()
        for name in sorted(imports(path))
        if room(name) in ORDER and ORDER.index(room(name)) > ORDER.index(room(dotted_name(path)))
    ]


def test_every_folder_has_its_place_in_the_order():
    assert {room(dotted_name(path)) for path in files()} <= set(ORDER)


def test_no_import_goes_to_a_later_folder():
    assert not upward(), "\n".join(upward())


def test_files_import_each_other_without_a_ring():
    known = {dotted_name(path) for path in files() if path.name != "__init__.py"}
    graph = {}
    for path in files():
        targets = {
            next((m for m in (name, name.rpartition(".")[0]) if m in known), None) for name in imports(path)
        }
        graph[dotted_name(path)] = targets - {None, dotted_name(path)}
    assert list(TopologicalSorter(graph).static_order())


def test_the_root_fits_a_screen_and_no_part_is_called_like_a_public_function():
    import graft

    entries = [path.name for path in SRC.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 28
    functions = {name for name in graft.__all__ if name.islower()}
    assert not functions & {entry.removesuffix(".py") for entry in entries}


def test_a_method_imports_what_its_paper_needs_and_nothing_else():
    host = {"methods"}  # it is built of another method, or leaves one behind
    more = {
        "adamix": host, "ipt": host, "lets": host, "p_tuning": host,
        "qa_lora": {"quant"},  # follows the groups in which the base is packed
        "adapter_fusion": {"base", "recipe"},  # reads trained adapters, and settings of untrained ones
    }  # fmt: skip
    beyond = {
        path.stem: {room(name) for name in imports(path)} - {"errors", "core", "layers"}
        for path in files()
        if room(dotted_name(path)) == "methods"
    }
    assert {name: rooms for name, rooms in beyond.items() if rooms} == more
