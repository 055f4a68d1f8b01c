"""Which rows a table of scores is about: how many were scored, and which were not, and why.

A row is scored if every metric that was asked for can use it, so that all numbers of a table are about the
same rows. A class that the head does not know is no reason to leave a row out: it counts as an error.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.data.rows import Reject, Row, by_reason
from graft.errors import listed
from graft.sizes import counted

FIRST = 3  # places that are named of each reason


@dataclass(frozen=True)
class Coverage:
    """The rows of a table of scores.

    of: rows that there were.  scored: those that the scores are about.
    left_out: rows that a metric cannot use, with the reason.  sampled: what a limit took, in words.
    notes: what else one must know to read the scores, a sentence each.
    fingerprint: of the scored rows' contents: equal rows have equal ones.
    """

    of: int = 0
    scored: int = 0
    left_out: Sequence[Reject] = ()
    sampled: str = ""
    notes: Sequence[str] = field(default=())
    fingerprint: str = ""

    def lines(self) -> list[str]:
        """Return the coverage in words: the count, what a limit did, what is left out, and the notes."""
        lines = [f"scored {self.scored:,} of {counted(self.of, 'row')}"]
        lines += [f"limit: {self.sampled}"] if self.sampled else []
        for reason, count in by_reason(self.left_out).items():
            rejects = [reject for reject in self.left_out if reject.reason == reason]
            places = listed((reject.source for reject in rejects), FIRST)
            lines.append(f"left out: {count} x {reason} ({places}); {rejects[0].detail}")
        return lines + list(self.notes)

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "of": self.of,
            "scored": self.scored,
            "left_out": by_reason(self.left_out),
            "left_out_rows": [str(reject) for reject in self.left_out],
            "sampled": self.sampled,
            "notes": list(self.notes),
            "lines": self.lines(),
            "fingerprint": self.fingerprint,
        }


def fingerprint(rows: Sequence[Row]) -> str:
    """Return a hash of rows' contents, whatever their order and their files."""
    return hashlib.sha256(b"".join(sorted(row.key() for row in rows))).hexdigest()[:16]
