"""graft serve: one base and a folder of adapters over HTTP, in OpenAI's form."""

import json
import os
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
from graft.sizes import size
from graft.storage.outputs import require_file


def add_to(app: typer.Typer) -> None:
    app.command("serve", short_help="Serve a base and its adapters over HTTP, as OpenAI does.")(serve)


def serve(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or seedling.")],
    adapters: Annotated[Path | None, typer.Option(help="A folder of adapters or runs.")] = None,
    host: Annotated[str, typer.Option(help="Others need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    quant: Annotated[str | None, typer.Option(help="How to store the base: nf4, int8, none ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute in fp32, bf16 or fp16.")] = None,
    name: Annotated[str | None, typer.Option(help="The name of the bare base as a model.")] = None,
    key_env: Annotated[str, typer.Option(help="Variable of the key.")] = "GRAFT_API_KEY",
    admin_key_env: Annotated[str, typer.Option(help="Of that to load.")] = "GRAFT_ADMIN_KEY",
    pin: Annotated[list[str] | None, typer.Option(help="An adapter that is always in memory.")] = None,
    adapter_memory: Annotated[
        int | None, typer.Option(min=1, help="MiB for adapters; the idle go first.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=256, help="Texts written at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait.")] = 64,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of all texts at once; those with soft prompts or log-probabilities have as many "
            "of their own.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 8192,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds of an answer.")] = 600.0,
    log: Annotated[Path | None, typer.Option(help="A file with a line of JSON for each request.")] = None,
    log_days: Annotated[int, typer.Option(min=1, help="Days of it that are kept.")] = 7,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Prompts and answers go there too.")] = False,
) -> None:
    """Serve MODEL and every adapter of a folder over HTTP, in OpenAI's form.

    Only this machine can reach it unless you say so.
    """
    key, admin = os.environ.get(key_env), os.environ.get(admin_key_env)
    guarded(host, key, key_env)
    if log_texts and log is None:
        raise UsageError("--log-texts without --log", "the file in which they go", "add --log FILE")
    if log is not None:
        require_file(log)
    listening = listening_on(host, port)
    begin(f"loading {model}", briefly=True)
    uvicorn = uvicorn_for("serve")
    from graft.runs.open import open_model
    from graft.serve.app import create_app
    from graft.serve.limits import Limits
    from graft.serve.logs import keep
    from graft.serve.registry import Registry
    from graft.serve.security import Keys
    from graft.serve.worker import Worker
    from graft.sizes import MIB

    base = open_model(model, (), quant, dtype).base
    stay_offline()
    budget = None if adapter_memory is None else adapter_memory * MIB
    registry = Registry(base, adapters, budget, pin or [])
    worker = Worker(base, registry, rows=rows, waiting=queue, cache_tokens=cache_tokens)
    served = name or Path(base.name).name or "base"
    app = create_app(
        worker,
        registry,
        name=served,
        keys=Keys.of(key, admin),
        limits=Limits(max_tokens=max_tokens, timeout_s=timeout_s),
        hosts=hosts(host),
    )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        keep(log, log_days)
        app.state.served.log_texts = log_texts
    listening.listen(256)  # whoever comes from now on waits until it is answered
    url = address(host, listening)
    talk(f"base    {served}   {base.count():,} parameters   {base.quant}")
    infos = registry.infos()
    kinds = ", ".join(sorted({info.methods[0] for info in infos}))
    talk(f"models  {served}" + (f" and {len(infos):,} adapters ({kinds})" if infos else ""))
    if budget is not None:
        talk(f"memory  {size(budget)} for adapters, {size(registry.bytes)} in use")
    talk(reach(host, key))
    if log is not None:
        talk(f"log     {log}, kept {log_days} days" + (", with prompts and answers" if log_texts else ""))
    talk(f"listens {url}/v1   (Ctrl-C ends it)")
    asked = json.dumps({"model": served, "messages": [{"role": "user", "content": "Hello"}]})
    header = f' -H "Authorization: Bearer ${key_env}"' if key else ""
    after(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{asked}'")
    serve_until_signal(uvicorn, app, listening, worker)
