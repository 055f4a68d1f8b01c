"""graft studio: pages for runs, for answers side by side and for blind votes, on this machine."""

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, talk
from graft.cli.serving import (
    address,
    guarded,
    hosts,
    listening_on,
    reach,
    serve_until_signal,
    stay_offline,
    uvicorn_for,
)
from graft.cli.wait import begin
from graft.errors import UsageError
from graft.storage.outputs import require_file, require_writable


def add_to(app: typer.Typer) -> None:
    app.command("studio", short_help="Show pages: runs, chat with several models, blind votes.")(studio)


def studio(
    model: Annotated[
        str | None, typer.Argument(help="Folder, hub id, or seedling; none: pages without answers.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of runs; new ones go there.")] = Path("runs"),
    adapters: Annotated[
        Path | None, typer.Option(help="A folder of adapters; by default that of the runs.")
    ] = None,
    votes: Annotated[Path | None, typer.Option(help="Their file; by default votes.sqlite3 there.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    host: Annotated[str, typer.Option(help="Address; another needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8001,
    quant: Annotated[str | None, typer.Option(help="How to store the base: nf4, int8, none ...")] = None,
    key_env: Annotated[
        str, typer.Option(help="Variable with the key to look and to vote.")
    ] = "GRAFT_API_KEY",
    admin_key_env: Annotated[
        str, typer.Option(help="The same of the key that starts and stops runs.")
    ] = "GRAFT_ADMIN_KEY",
) -> None:
    """Show the runs of a folder, and MODEL with their adapters, as pages for a browser.

    Only this machine can reach them unless you say so.
    """
    key, admin = os.environ.get(key_env), os.environ.get(admin_key_env)
    guarded(host, key, key_env)
    given = {"--adapters": adapters, "--quant": quant}
    if model is None and (useless := [name for name, value in given.items() if value is not None]):
        raise UsageError(
            f"{' and '.join(useless)} without a model",
            "a model that answers with them",
            "give its folder, a hub id or seedling as the first word",
        )
    votes = votes or runs / "votes.sqlite3"
    require_writable(runs / "votes.sqlite3", typed=runs)
    require_file(votes)
    listening = listening_on(host, port)
    begin(f"loading {model}" if model else "looking at the runs", briefly=True)
    uvicorn = uvicorn_for("studio")
    from graft.serve.app import bare_app, create_app
    from graft.serve.security import Keys
    from graft.serve.studio.app import add_studio
    from graft.serve.studio.pages import PAGES, ROOT
    from graft.serve.studio.state import Studio

    runs.mkdir(parents=True, exist_ok=True)
    votes.parent.mkdir(parents=True, exist_ok=True)
    keys, worker = Keys.of(key, admin), None
    if model is None:
        app = bare_app(keys=keys, hosts=hosts(host))
    else:
        from graft.runs.open import open_model
        from graft.serve.registry import Registry
        from graft.serve.worker import Worker

        base = open_model(model, (), quant).base
        name = Path(base.name).name or "base"
        registry = Registry(base, adapters or runs)
        worker = Worker(base, registry)
        app = create_app(worker, registry, name=name, keys=keys, hosts=hosts(host))
        count = len(registry.infos())
        talk(f"models  {name}" + (f" and {count:,} adapters of {adapters or runs}" if count else ""))
    stay_offline()
    add_studio(app, Studio(runs, votes, getattr(app.state, "served", None)))
    listening.listen(256)  # whoever comes from now on waits until it is answered
    titles = [page.title for page in PAGES if page.linked and (model or not page.models)]
    talk(f"pages   {', '.join(titles).lower()}")
    talk(f"runs    {runs}")
    talk(f"votes   {votes}")
    talk(reach(host, key))
    url = f"{address(host, listening)}{ROOT}"
    talk(f"listens {url}   (Ctrl-C ends it)")
    if open_:
        webbrowser.open(url)
    after(f"open {url} in a browser")
    serve_until_signal(uvicorn, app, listening, worker)
