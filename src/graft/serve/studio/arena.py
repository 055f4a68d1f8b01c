"""The blind arena: two models answer a prompt at once, and nobody is told which until there is a vote.

Nothing that is sent before the vote depends on who answers, but the answers themselves: no name, digest, time
or number of a model, also where something fails. Both answers and the vote are kept in the file of the votes.
"""

import asyncio
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from graft.generate.request import Completion
from graft.serve.chat import NO_CACHE
from graft.serve.failures import ApiError
from graft.serve.jobs import Busy
from graft.serve.schema import Sampled
from graft.serve.security import role
from graft.serve.streams import merged
from graft.serve.studio.pairing import CHANCE, contestants, draw, names_one
from graft.serve.studio.prompts import held_out_prompts
from graft.serve.studio.state import studio_of
from graft.serve.studio.votes import UNDO_S, Battle, Contestant, Prompt, Vote, Votes, as_text, votes_of
from graft.serve.texts import Choice, Served, begin, cancel

log = logging.getLogger("graft.serve")
router = APIRouter(prefix="/studio/api")
SIDES = "ab"
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=40, min_length=1)]
Number = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]


class Turn(BaseModel):
    """A message: its text alone."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class Asked(BaseModel):
    """What a battle is about.  contestants: models that may meet; all where there are none."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=64)] | None = None
    contestants: Annotated[list[str], Field(min_length=2, max_length=256)] | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True)] = 256
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0


class Voted(BaseModel):
    """A vote.  key: made by the caller for this vote alone, so that trying again does not vote again."""

    model_config = ConfigDict(extra="forbid")
    battle: Number
    verdict: Literal["a", "b", "tie", "bad"]
    key: Number
    voter: Annotated[str, StringConstraints(max_length=64)] = ""
    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] = ""
    tags: Annotated[list[Text], Field(max_length=8)] = []


class Undone(BaseModel):
    model_config = ConfigDict(extra="forbid")
    battle: Number
    key: Number


@router.post("/battles")
@role("vote")
async def fight(request: Request, asked: Asked) -> Response:
    """Let two models answer; lines of JSON tell what they write.

    {"battle": ...}   {"side": "a", "text": ...} ...   {"side": "a", "ended": true, "cut": false}
    {"ready": true, "flagged": false} or {"error": ...}
    """
    served = _served(request)
    votes = await asyncio.to_thread(votes_of, request)
    prompt = _prompt(asked)
    met = await asyncio.to_thread(votes.met)
    sides = await draw(served, met, asked.contestants, _silent(request))
    choices: list[Choice] = []
    try:
        for place, side in enumerate(sides):
            sampled = Sampled(model=side.name, temperature=asked.temperature, top_p=asked.top_p)
            chat = not isinstance(prompt, str)
            key = getattr(request.state, "key", "studio")
            (choice,) = await begin(
                served, sampled, [prompt], key=key, max_tokens=asked.max_tokens, logprobs=None, chat=chat
            )
            choice.index = place
            choices.append(choice)
    except BaseException as error:
        cancel(choices)
        if isinstance(error, ApiError | Busy) or not isinstance(error, Exception):
            raise
        log.warning("a battle could not begin: %s", error)
        raise _unanswered() from None
    sampling = {"max_tokens": asked.max_tokens, "temperature": asked.temperature, "top_p": asked.top_p}
    battle = Battle(secrets.token_urlsafe(16), time.time(), prompt, sides, ("", ""), sampling)
    lines = _lines(served, votes, battle, choices)
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=NO_CACHE)


async def _lines(served: Served, votes: Votes, battle: Battle, choices: list[Choice]) -> AsyncIterator[bytes]:
    """Yield what two models write; the battle is kept before the last line says that it is ready."""
    answers = ["", ""]
    try:
        yield _line({"battle": battle.id})
        async for choice, found in merged(choices):
            side = SIDES[choice.index]
            if isinstance(found, Completion):
                answers[choice.index] = found.text
                yield _line({"side": side, "ended": True, "cut": found.finish_reason == "length"})
            elif found.text:
                yield _line({"side": side, "text": found.text})
        known = await asyncio.to_thread(contestants, served)
        if any(known.get(side.name) != side for side in battle.sides):
            raise ApiError(409, "a model was changed while it wrote", code="changed")
        flagged = any(names_one(answer, list(known)) for answer in answers)
        whole = replace(battle, answers=(answers[0], answers[1]), flagged=flagged)
        await asyncio.to_thread(votes.keep, whole)
        yield _line({"ready": True, "flagged": flagged})
    except Exception as error:  # whatever it says may name a model
        log.warning("a battle broke off: %s", error)
        yield _line(_unanswered().body())
    finally:
        cancel(choices)


@router.post("/votes")
@role("vote")
async def vote(request: Request, voted: Voted) -> JSONResponse:
    """Count a vote, and tell who was who."""
    votes = await asyncio.to_thread(votes_of, request)
    counted = await asyncio.to_thread(
        votes.vote,
        voted.battle,
        voted.verdict,
        key=voted.key,
        voter=voted.voter,
        reason=voted.reason,
        tags=voted.tags,
    )
    return JSONResponse(_revealed(counted))


@router.post("/votes/undo")
@role("vote")
async def undo(request: Request, undone: Undone) -> JSONResponse:
    """Take a vote back."""
    votes = await asyncio.to_thread(votes_of, request)
    counted = await asyncio.to_thread(votes.undo, undone.battle, undone.key)
    return JSONResponse(_revealed(counted))


@router.get("/arena")
@role("infer")
async def arena(request: Request) -> JSONResponse:
    """Return what the page shows before a vote: how many models there are, and none of their names."""
    studio, served = studio_of(request), _served(request)
    votes = await asyncio.to_thread(votes_of, request)
    counted = [one for one in await asyncio.to_thread(votes.all) if one.undone_at is None]
    tags = sorted({tag for one in counted for tag in one.tags})
    known = await asyncio.to_thread(contestants, served)
    return JSONResponse(
        {
            "models": len(set(known.values()) - _silent(request)),
            "votes": len(counted),
            "tags": tags,
            "chat": bool(getattr(served.base.tokenizer, "chat_template", None)),
            "file": studio.votes.name,
            "undo_s": UNDO_S,
        }
    )


@router.get("/prompts/next")
@role("infer")
async def next_prompt(request: Request) -> JSONResponse:
    """Return a prompt of a held-out row that has the fewest votes; null where no run holds any."""
    studio = studio_of(request)
    votes = await asyncio.to_thread(votes_of, request)
    found = await asyncio.to_thread(held_out_prompts, studio.home)
    if not found:
        return JSONResponse({"prompt": None, "messages": None, "of": 0})
    asked = Counter(one.battle.asked for one in await asyncio.to_thread(votes.all))
    counts = [asked[as_text(prompt)] for _, prompt in found]
    fewest = [one for one, count in zip(found, counts, strict=True) if count == min(counts)]
    _, prompt = CHANCE.choice(fewest)
    text = isinstance(prompt, str)
    shown = {"prompt": prompt if text else None, "messages": None if text else prompt}
    return JSONResponse({**shown, "of": len(found)})


def _revealed(counted: Vote) -> dict[str, Any]:
    battle = counted.battle
    shown = {
        side: {"model": one.name, "digest": one.digest[:16]}
        for side, one in zip(SIDES, battle.sides, strict=True)
    }
    return {
        "battle": battle.id,
        "verdict": counted.verdict,
        **shown,
        "flagged": battle.flagged,
        "counts": counted.counts,
        "undone": counted.undone_at is not None,
        "undo_until": counted.created + UNDO_S,
    }


def _prompt(asked: Asked) -> Prompt:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "either a prompt or messages", param="messages")
    if asked.prompt is not None:
        return asked.prompt
    return [turn.model_dump() for turn in asked.messages or []]


def _served(request: Request) -> Served:
    served = studio_of(request).served
    if served is None:
        raise ApiError(409, "no model is served: start the studio with one", code="no_model")
    return served


def _silent(request: Request) -> set[Contestant]:
    """Return the models that turned out to write no text; shared by all requests."""
    state = request.app.state
    if getattr(state, "silent", None) is None:
        state.silent = set()
    found: set[Contestant] = state.silent
    return found


def _unanswered() -> ApiError:
    return ApiError(
        503,
        "one of the models could not answer; the server's log says why",
        code="no_answer",
        retry_after_s=1,
    )


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
