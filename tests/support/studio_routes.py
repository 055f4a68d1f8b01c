"""The routes of a studio's application, of all its routers."""

import re

from graft.serve.security import ROLE


def routes_of(app):
    """Return the routes of an application or a router, with those of the routers that it includes."""
    found = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else routes_of(inner)
    return [route for route in found if route.path != "/openapi.json"]  # FastAPI's own: it tells the schemas


def role_of(route):
    """Return the role that a route declares; None for none."""
    return getattr(route.endpoint, ROLE, None)


def guarded(app, *roles):
    """Return the method and an address of every route with one of these roles, in order."""
    return sorted(
        (method, re.sub(r"\{[^}]*\}", "x", route.path))
        for route in routes_of(app)
        for method in route.methods - {"HEAD"}
        if role_of(route) in roles
    )
