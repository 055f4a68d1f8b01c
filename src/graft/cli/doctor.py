"""graft doctor: check this machine, and whether the libraries behave as graft relies on."""

from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, table
from graft.cli.wait import begin
from graft.sizes import size


def add_to(app: typer.Typer) -> None:
    app.command("doctor", help="Check this machine and the libraries that graft uses.")(doctor)


def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure how fast it is, for some seconds; `dtype: auto` obeys.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    begin("measuring this machine" if bench else "looking at this machine")
    from graft.kernels.measure import bench as measured  # torch costs seconds
    from graft.runs.doctor import examine, speed_table

    speed = measured() if bench else None
    facts, checks = examine()
    if json:
        found = {} if speed is None else {"speed": speed.facts()}
        show_json({**facts, **found, "checks": {check.name: check.trouble or "ok" for check in checks}})
    else:
        for name, value in facts.items():
            show(f"{name:<14} {value}")
        if speed is not None:
            header, *rows = speed_table(speed)
            show(table(header, rows))
            show(f"{'decoding':<14} {speed.decoding / 1e6:,.0f} million 4-bit weights/s")
            show(f"{'reading':<14} {size(int(speed.reading))}/s")
        for check in checks:
            show(f"{check.name:<40} {check.trouble or 'ok'}")
    if any(check.trouble for check in checks):
        after("install the versions in constraints.txt: a library does not behave as graft relies on")
        raise typer.Exit(1)
    after("graft demo")
