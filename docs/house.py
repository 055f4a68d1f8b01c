"""Print the shape of the code: root, order of folders, upward arrows, circles, sizes, samples.

    python docs/house.py [--seed 7]

The samples are docstrings and errors of src/graft, drawn at random by the seed.
"""

import argparse
import ast
import random
import re
import statistics
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "graft"
sys.path.insert(0, str(ROOT / "tests"))

from test_layers import ORDER, dotted_name, files, imports, room, upward  # noqa: E402 (the test holds the order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=7, help="of the docstrings and errors that are drawn")
    seed = parser.parse_args().seed
    tell_root()
    tell_order()
    tell_sizes()
    tell_repository()
    tell_samples(seed)


def tell_root() -> None:
    entries = sorted(path.name for path in SRC.iterdir() if path.name != "__pycache__")
    print(f"src/graft has {len(entries)} entries (at most 28):\n  {'  '.join(entries)}\n")


def tell_order() -> None:
    """Print what each folder imports of those above it, then what breaks the order."""
    print("folder: what it imports, types and late imports included")
    arrows = {name: set() for name in ORDER}
    for path in files():
        here = room(dotted_name(path))
        arrows[here] |= {room(name) for name in imports(path)} & set(ORDER) - {here}
    for name in ORDER:
        print(f"  {name:<11} {' '.join(sorted(arrows[name], key=ORDER.index)) or '-'}")
    known = {dotted_name(path) for path in files() if path.name != "__init__.py"}
    graph = {}
    for path in files():
        targets = {next((m for m in (n, n.rpartition(".")[0]) if m in known), None) for n in imports(path)}
        graph[dotted_name(path)] = targets - {None, dotted_name(path)}
    try:
        TopologicalSorter(graph).prepare()
        circle = "none"
    except CycleError as error:
        circle = " -> ".join(error.args[1])
    print(f"upward arrows: {len(upward())} {upward()}\ncircles of files: {circle}")
    asked = [place for path in files() for place in stages_asked_for(path)]
    print(f"stages or objectives compared outside stages/ and recipe/: {len(asked)} {asked}\n")


def stages_asked_for(path: Path) -> list[str]:
    """Return the lines that compare a stage or an objective; none for files of stages and recipes."""
    place = path.relative_to(SRC)
    if place.parts[0] in ("stages", "recipe"):
        return []
    compared = re.compile(r"(stage|objective) ?(==|!=|in )")
    lines = path.read_text().splitlines()
    return [f"{place}:{number}" for number, line in enumerate(lines, 1) if compared.search(line)]


def tell_sizes() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in files())
    trees = [ast.parse(path.read_text()) for path in files()]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    spans = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    parameters = sorted(len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs) for f in functions)
    print(
        f"{len(lengths)} files: median {statistics.median(lengths):.0f}, p90 {at(lengths, 0.9)}, "
        f"max {lengths[-1]} lines\n{len(spans)} functions: p95 {at(spans, 0.95)}, max {spans[-1]} lines; "
        f"parameters p95 {at(parameters, 0.95)}\ncore/method.py: "
        f"{len((SRC / 'core' / 'method.py').read_text().splitlines())} lines\n"
    )


def at(values: list[int], share: float) -> int:
    """Return the value that this share of the sorted values does not exceed."""
    return values[int(share * (len(values) - 1))]


def tell_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    long = {}
    for name in names:
        if name.endswith((".py", ".md", ".toml", ".yaml", ".yml")):
            over = sum(len(line) > 110 for line in (ROOT / name).read_text().splitlines())
            part = name.split("/")[0] if "/" in name else "root"
            long[part] = long.get(part, 0) + over
    print(f"{len(names)} tracked files; lines over 110 columns: {sum(long.values())} {long}\n")


def tell_samples(seed: int) -> None:
    """Print 20 docstrings of functions and 20 errors as they are raised."""
    documented, raised = [], []
    for path in files():
        place = path.relative_to(SRC)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                documented.append((f"{place}:{node.lineno} {node.name}", text))
            if isinstance(node, ast.Raise) and is_error(node.exc):
                parts = [ast.unparse(part) for part in node.exc.args]
                raised.append((f"{place}:{node.lineno} {ast.unparse(node.exc.func)}", "\n".join(parts)))
    draw = random.Random(seed)
    for title, known in (("docstrings", documented), ("errors (given, expected, to do)", raised)):
        print(f"20 of {len(known)} {title}, seed {seed}")
        for place, text in draw.sample(known, 20):
            print(f"  {place}\n    " + text.replace("\n", "\n    "))
        print()


def is_error(raised: ast.expr | None) -> bool:
    """Return whether this is one of our errors, with what was given, what was expected and what to do."""
    if not isinstance(raised, ast.Call) or len(raised.args) != 3:
        return False
    return ast.unparse(raised.func).endswith(("Error", "BadRow"))


if __name__ == "__main__":
    main()
