"""The layers of the house: imports go to earlier groups, or inside a group without a ring."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src" / "graft"
LAYERS = [
    {"errors"},
    {"site", "insert", "route", "kernels"},
    {"quant", "formats", "method"},
    {"adapter", "anatomy", "cards"},
    {"recipe"},
    {"methods", "data", "seedling"},
    {"base", "joint", "merging", "dropout", "head", "rows", "identity", "generation", "attention", "virtual"},
    {"load", "folder", "objectives"},
    {"evaluate", "export", "lowrank", "soup", "blend", "extract"},
    {"train"},
    {"plan", "sketch"},
    {"run", "runs", "report", "demo", "selftest"},
    {"cli"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names under graft that a file imports, `TYPE_CHECKING` blocks left out."""
    found: set[str] = set()

    def walk(node: ast.AST, depth: int) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(a.name for a in child.names if a.name.startswith("graft."))
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "graft":
                found.update([child.module] if child.module != "graft" else [f"graft.{a.name}" for a in child.names])
            if not (top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
                walk(child, depth + 1)

    walk(ast.parse(path.read_text()), 0)
    return found


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def dotted_name(path: Path) -> str:
    return "graft." + ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def files():
    return [p for p in sorted(SRC.rglob("*.py")) if p != SRC / "__init__.py"]


def test_every_part_of_the_house_has_a_layer():
    assert {part_of(p) for p in files()} <= set(RANK)


def test_imports_go_to_earlier_layers():
    wrong = [
        f"{path.relative_to(SRC)} imports {name}"
        for path in files()
        for name in imports(path)
        if name.split(".")[1] in RANK and RANK[name.split(".")[1]] > RANK[part_of(path)]
    ]
    assert not wrong, wrong


def test_no_ring_of_imports():
    graph = {}
    known = {dotted_name(path) for path in files() if path.name != "__init__.py"}
    for path in files():
        dotted = dotted_name(path)
        graph[dotted] = {name for name in imports(path, top_only=True) if name != dotted and (name in known)}
    assert list(TopologicalSorter(graph).static_order())
