"""graft doctor: check this machine, and whether the libraries behave as graft relies on."""

from typing import Annotated

import typer

from graft.cli.say import after, show, show_json


def add_to(app: typer.Typer) -> None:
    app.command("doctor", help="Check this machine and the libraries that graft uses.")(doctor)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    from graft.runs.doctor import examine  # torch costs seconds

    facts, checks = examine()
    if json:
        show_json({**facts, "checks": {check.name: check.trouble or "ok" for check in checks}})
    else:
        for name, value in facts.items():
            show(f"{name:<14} {value}")
        for check in checks:
            show(f"{check.name:<40} {check.trouble or 'ok'}")
    if any(check.trouble for check in checks):
        after("install the versions in constraints.txt: a library does not behave as graft relies on")
        raise typer.Exit(1)
    after("graft demo")
