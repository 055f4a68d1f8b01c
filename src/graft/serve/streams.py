"""The texts of several choices at once: as they grow, or when all have ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from graft.generate.request import Completion
from graft.serve.jobs import Cancelled, Piece
from graft.serve.texts import Choice, cancel

LOOK_S = 0.1  # between two looks whether a client is still there


async def merged(choices: list[Choice]) -> AsyncIterator[tuple[Choice, Piece | Completion]]:
    """Yield what is written to all choices, as it comes. Whoever stops listening cancels them."""
    ready: asyncio.Queue[tuple[Choice, Piece | Completion | Exception]] = asyncio.Queue()

    async def listen(choice: Choice) -> None:
        try:
            async for found in choice.pieces():
                await ready.put((choice, found))
        except Exception as error:
            await ready.put((choice, error))

    tasks = [asyncio.create_task(listen(choice)) for choice in choices]
    left = len(choices)
    try:
        while left:
            choice, found = await ready.get()
            if isinstance(found, Exception):
                raise found
            left -= isinstance(found, Completion)
            yield choice, found
    finally:
        cancel(choices)
        for task in tasks:
            task.cancel()


async def whole(request: Request, choices: list[Choice]) -> list[Completion]:
    """Return the texts of all choices. A client that goes away cancels them."""
    tasks = [asyncio.create_task(choice.completion()) for choice in choices]
    watch = asyncio.create_task(_gone(request))
    try:
        everything = asyncio.gather(*tasks)
        either: set[asyncio.Future[Any]] = {everything, watch}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if watch.done() and not everything.done():
            everything.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await everything
            raise Cancelled("the client went away")
        return list(await everything)
    finally:
        cancel(choices)
        watch.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has gone away."""
    while not await request.is_disconnected():
        await asyncio.sleep(LOOK_S)
