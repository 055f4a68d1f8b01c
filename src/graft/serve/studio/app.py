"""Adds the studio to an application."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request

from graft.serve.studio.pages import add_pages
from graft.serve.texts import Served

ROUTERS = ()  # of each page, from its own file


@dataclass
class Studio:
    """What all pages share.

    home: the folder of runs.  votes: the file of the votes.  served: the model; None where none is served.
    """

    home: Path
    votes: Path
    served: Served | None = None


def add_studio(app: FastAPI, studio: Studio) -> None:
    """Add the pages and their routes. Without keys, what changes something needs a token that pages hold."""
    app.state.studio = studio
    if not app.state.keys.infer:
        app.state.token = secrets.token_urlsafe(32)
    add_pages(app, token=app.state.token, models=studio.served is not None)
    for router in ROUTERS:
        app.include_router(router)


def studio_of(request: Request) -> Studio:
    """Return what the pages of a request's server share."""
    found: Studio = request.app.state.studio
    return found
