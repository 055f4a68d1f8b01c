"""Adds the studio to an application."""

import secrets

from fastapi import APIRouter, FastAPI

from graft.serve.studio import arena, board, chat, feedback, live, plans, rows, runs, uploads
from graft.serve.studio.pages import add_missing, add_pages
from graft.serve.studio.state import Studio as Studio
from graft.serve.studio.state import studio_of as studio_of

# Of each page, from its own file.
ROUTERS: tuple[APIRouter, ...] = (
    runs.router,
    live.router,
    plans.router,
    rows.router,
    uploads.router,
    chat.router,
    arena.router,
    board.router,
    feedback.router,
)


def add_studio(app: FastAPI, studio: Studio) -> None:
    """Add the pages and their routes. Without keys, what changes something needs a token that pages hold."""
    app.state.studio = studio
    if not app.state.keys.infer:
        app.state.token = secrets.token_urlsafe(32)
    add_pages(app, token=app.state.token, models=studio.served is not None)
    for router in ROUTERS:
        app.include_router(router)
    add_missing(app, models=studio.served is not None)  # the last one: it takes whatever is left
