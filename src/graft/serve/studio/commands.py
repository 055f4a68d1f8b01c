"""Questions that graft answers in a process of its own, one at a time: plans, and rows as a model sees them.

They need torch, or read what strangers wrote: the server's process does neither for a page. Nothing of them
reaches the network.
"""

import asyncio
import json
import os
import re
import subprocess
from typing import Any

from fastapi import Request

from graft.serve.failures import ApiError
from graft.serve.studio.processes import PROGRAM

TIMEOUT_S = 180
ERROR = re.compile(r"^graft: error: ", re.MULTILINE)
PARTS = {  # of an error, as a terminal has them
    r"\n\s+expected:\s+": ".\nExpected: ",
    r"\n\s+to do:\s+": ".\nTo do: ",
}


async def answered(request: Request, words: list[str]) -> Any:
    """Return the JSON that graft prints for these words. Raises ApiError with its own sentence if it fails.

    A page that goes away while others are answered is not answered any more.
    """
    state = request.app.state
    if not hasattr(state, "turn"):
        state.turn = asyncio.Semaphore(1)
    async with state.turn:
        if await request.is_disconnected():
            raise ApiError(499, "the page has gone", code="gone")
        return await asyncio.to_thread(_run, words)


def _run(words: list[str]) -> Any:
    try:
        done = subprocess.run(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ApiError(
            503, f"graft {words[0]} did not answer in {TIMEOUT_S} s: try again", code="timeout"
        ) from None
    except (OSError, ValueError) as error:  # no memory for a process; an argument with NUL
        raise ApiError(400, f"graft {words[0]} cannot be asked that: {error}") from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    told = ERROR.split(done.stderr)[-1].strip()
    for part, sentence in PARTS.items():
        told = re.sub(part, sentence, told)
    if done.returncode in (1, 2, 74):
        raise ApiError(400, told[-4000:] or f"graft {words[0]} failed")
    raise ApiError(503, f"graft {words[0]} ended with {done.returncode}: {told[-400:]}", code="failed")
