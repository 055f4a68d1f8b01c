"""What all pages of a studio share. Routers of pages ask for it here: `app` imports the routers."""

from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from graft.serve.texts import Served


@dataclass
class Studio:
    """What all pages share.

    home: the folder of runs.  votes: the file of the votes.  served: the model; None where none is served.
    """

    home: Path
    votes: Path
    served: Served | None = None


def studio_of(request: Request) -> Studio:
    """Return what the pages of a request's server share."""
    found: Studio = request.app.state.studio
    return found
