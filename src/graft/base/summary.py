"""How a base and its adapters show themselves: one line in Python, a small table in a notebook.

Nothing is read or computed for it but numbers of parameters, so that it costs nothing on a large base.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

from graft.errors import listed
from graft.sizes import number

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def base_line(base: Any) -> str:
    """Return for example: Base seedling, 2.16 M parameters, nf4, adapters: sql (lora, 117 k)."""
    adapters = [f"{one.name} ({_methods(one)}, {number(one.count())})" for one in base.adapters.values()]
    merged = [one.adapter for one in base.merged]
    parts = [
        f"Base {base.name or type(base.model).__name__}",
        f"{number(base.count())} parameters",
        _stored(base),
    ]
    parts += [f"adapters: {listed(adapters)}" if adapters else "no adapters"]
    return ", ".join([*parts, f"merged: {listed(merged)}"] if merged else parts)


def adapter_line(adapter: Any) -> str:
    """Return for example: Adapter sql (lora), 117 k parameters at 14 sites."""
    sites = len(adapter.inserts)
    trained = f"{number(adapter.count())} parameters at {sites} {'site' if sites == 1 else 'sites'}"
    return f"Adapter {adapter.name} ({_methods(adapter)}), {trained}"


def base_table(base: Any) -> str:
    """Return what a notebook shows of a base."""
    merged = {one.adapter for one in base.merged}
    rows = [
        [
            one.name,
            _methods(one),
            number(one.count()),
            str(len(one.inserts)),
            "merged" if one.name in merged else "",
        ]
        for one in base.adapters.values()
    ]
    facts = {
        "base": base.name or type(base.model).__name__,
        "model": f"{type(base.model).__name__} ({base.family})",
        "parameters": number(base.count()),
        "weights": _stored(base),
        "device": str(base.device),
    }
    head = ("adapter", "method", "parameters", "sites", "")
    return _facts(facts) + (_table(head, rows) if rows else "<p>no adapters</p>")


def adapter_table(adapter: Any) -> str:
    """Return what a notebook shows of an adapter."""
    facts = {
        "adapter": adapter.name,
        "method": " + ".join(map(repr, adapter.methods)),
        "parameters": number(adapter.count()),
        "sites": str(len(adapter.inserts)),
    }
    packed = adapter.trained_on not in ("", "none")
    return _facts(facts | {"trained on": f"{adapter.trained_on} weights"} if packed else facts)


def _methods(adapter: Any) -> str:
    return " + ".join(method.name() for method in adapter.methods)


def _stored(base: Any) -> str:
    """Return the number format of the weights: packed, or that of the activations."""
    dtype = str(base.dtype).removeprefix("torch.")
    return DTYPES.get(dtype, dtype) if base.quant == "none" else base.quant


def _facts(facts: dict[str, str]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"
