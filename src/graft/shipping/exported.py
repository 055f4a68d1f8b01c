"""The folder of an export: a path like any other, which shows what its certificate says."""

import json
from pathlib import Path
from typing import Any

from graft import storage
from graft.core import html_card
from graft.sizes import size_of


class Exported(type(Path())):  # type: ignore[misc]  # Path itself cannot be derived from before Python 3.12
    """The folder that `graft.export` wrote.

    certificate: how far it is from what was trained; empty for any other path.
    """

    @property
    def certificate(self) -> dict[str, Any]:
        try:
            return dict(json.loads(Path(self, storage.CERTIFICATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            return {}

    def __repr__(self) -> str:
        facts = self.certificate
        if not facts:
            return f"Path({str(self)!r})"
        told = [f"Exported   {self}   {facts['format']}, {size_of(Path(self))}"]
        if adapters := " + ".join(adapter["name"] for adapter in facts.get("adapters", ())):
            told.append(f"of         {adapters} on {facts['base']['name']}")
        if (survived := (facts.get("weights") or {}).get("survived")) is not None:
            told.append(f"weights    {survived:.1%} of what was learnt is in them")
        return "\n".join([*told, f"check      graft verify {self}"])

    def _repr_html_(self) -> str:
        lines = [(line[:10].strip(), line[10:].strip()) for line in repr(self).splitlines()]
        return html_card.card([html_card.table(lines)])
