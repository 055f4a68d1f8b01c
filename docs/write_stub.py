"""Write src/graft/__init__.pyi: the public names as type checkers and editors know them, who run nothing.

    python docs/write_stub.py

Names are imported from the files that define them. A function whose signature is made when it is defined, as
that of `graft.train` is from the recipe's keys, is written out. tests/test_typing.py compares the file with
what this writes.
"""

import functools
import inspect
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import graft

STUB = Path(__file__).resolve().parents[1] / "src" / "graft" / "__init__.pyi"
TITLE = (
    '"""The public names of graft, for type checkers and editors. `python docs/write_stub.py` writes this."""'
)


def stub() -> str:
    """Return the text of the stub."""
    public = {name: getattr(graft, name) for name in graft.__all__}
    made = {n: v for n, v in public.items() if inspect.isfunction(v) and "__signature__" in vars(v)}
    imports = {(home(value), f"{name} as {name}") for name, value in public.items() if name not in made}
    written = [definition(value, imports, public) for value in made.values()]
    head = [TITLE, "", "import sys", *import_lines(imports), "", "__version__: str", "__all__: list[str]", ""]
    return "\n".join([*head, *written, *hidden(public)]) + "\n"


def home(value: Any) -> str:
    """Return the module that defines a name."""
    return str(value.__module__)


def import_lines(imports: set[tuple[str, str]]) -> list[str]:
    """Return the imports in ruff's order: Python's own first; names that are only used share a line."""
    used: dict[str, list[str]] = {}
    for module, name in sorted(imports):
        if " as " not in name:
            used.setdefault(module, []).append(name)
    lines = [(module, f"from {module} import {', '.join(names)}") for module, names in used.items()]
    lines += [(module, f"from {module} import {name}") for module, name in imports if " as " in name]
    ours = [line for module, line in sorted(lines) if module.startswith("graft.")]
    return [*(line for module, line in sorted(lines) if not module.startswith("graft.")), "", *ours]


def definition(function: Callable[..., Any], imports: set[tuple[str, str]], public: dict[str, Any]) -> str:
    """Return a function with its signature and docstring.  imports: gets what its types need."""
    shown = functools.partial(written_type, imports=imports, public=public)
    signature, lines, starred = inspect.signature(function), [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines, starred = [*lines, "    *,"], True
        usual = "" if parameter.default is parameter.empty else f" = {written_value(parameter.default)}"
        lines.append(f"    {parameter.name}: {shown(parameter.annotation)}{usual},")
    doc = (function.__doc__ or "").rstrip()
    returned = shown(signature.return_annotation)
    head = f"def {function.__name__}("
    return "\n".join([head, *lines, f") -> {returned}:", f'    """{doc}', '    """', ""])


def written_type(kind: Any, imports: set[tuple[str, str]], public: dict[str, Any]) -> str:
    """Return a type as Python writes it, and note what must be imported for it."""
    if isinstance(kind, str):
        return kind
    if isinstance(kind, list):  # the arguments of a Callable
        return f"[{', '.join(written_type(part, imports, public) for part in kind)}]"
    if kind is ... or kind is None or kind is type(None):
        return "..." if kind is ... else "None"
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(written_type(part, imports, public) for part in inner)
    named = origin or kind
    name, module = getattr(named, "__name__", None) or str(named).rpartition(".")[2], home(named)
    if module != "builtins" and not (name in public and public[name] is named):
        imports.add((module.partition("._")[0], name))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(written_value, inner))}]"
    parts = [written_type(part, imports, public) for part in inner]
    return f"{name}[{', '.join(parts)}]" if parts else name


def written_value(value: Any) -> str:
    """Return a default as Python writes it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def hidden(public: dict[str, Any]) -> list[str]:
    """Return lines that take the parts of the package out of what jedi completes after `graft.`.

    It lists every folder of a package, but nothing that a module deletes, if it cannot tell that the line is
    never reached. Type checkers can tell: `graft.errors` stays what it is to them.
    """
    parts = {path.name.partition(".")[0] for path in STUB.parent.iterdir() if path.name[0] not in "_."}
    names = sorted(parts - set(public) - {"py"})
    said = "# Parts of the package: an editor that lists files does not complete them."
    hiding = [f"    del {name}  # noqa: F821" for name in names]
    return [said, 'if sys.platform == "none":', *hiding, "    del importlib, sys  # noqa: F821"]


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
