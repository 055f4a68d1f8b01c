"""From votes to a preference run in one click: what would be learnt, the files of it, and the run.

HOME/.studio/NAME.votes/train.jsonl       rows that the run learns from
HOME/.studio/NAME.votes/held-out.jsonl    rows of prompts that it never learns from, if there are some
HOME/.studio/NAME.votes/provenance.json   of each row its votes: who wrote what, how, when, who voted
"""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from graft import storage
from graft.core.positions import context_length
from graft.recipe.places import place_of
from graft.serve.failures import ApiError
from graft.serve.folders import NAME
from graft.serve.security import role
from graft.serve.studio.pairs import REASONS, Learnt, Selection, select
from graft.serve.studio.processes import DESK, start
from graft.serve.studio.state import studio_of
from graft.serve.studio.votes import Vote, votes_of
from graft.serve.texts import Served

router = APIRouter(prefix="/studio/api")
SHOWN = 8  # rows of a preview
LONGEST = 1024  # tokens of a row
BATCH, ROWS = 16, 8  # rows of a step, and of a forward, at most
STEPS = 4  # of an epoch, at least
DTYPES = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}
# As in recipes/dpo.yaml and recipes/kto.yaml; several epochs, for votes are few.
PRESETS: dict[str, dict[str, Any]] = {
    "dpo": {"lr": 6e-4, "epochs": 3.0, "beta": 0.4, "sft_weight": 3.0},
    "kto": {"lr": 9e-4, "epochs": 3.0, "beta": 0.5, "sft_weight": 3.0},
}
_writing = threading.Lock()  # two requests for one name must not both find it free

Objective = Literal["dpo", "kto"]
Majority = Annotated[float, Field(gt=0.5, le=1, allow_inf_nan=False)]
HeldOut = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]


class Wanted(BaseModel):
    """A run on the votes.

    name: of the run.  start: an adapter to go on from; None: a new one.  The rest is as `select` and the
    recipe's keys say; what is None is as in the preset of the objective.
    """

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=200)]
    objective: Objective = "dpo"
    majority: Majority = 0.6
    held_out: HeldOut = 0.1
    start: str | None = None
    lr: Positive | None = None
    epochs: Positive | None = None
    beta: Positive | None = None


@router.get("/preferences")
@role("infer")
async def preview(
    request: Request,
    objective: Annotated[Objective, Query()] = "dpo",
    majority: Annotated[Majority, Query()] = 0.6,
    held_out: Annotated[HeldOut, Query()] = 0.1,
) -> JSONResponse:
    """Return what the votes would become: numbers, what is left out and why, and the first rows."""
    studio = studio_of(request)
    votes = await asyncio.to_thread(votes_of, request)
    every = await asyncio.to_thread(votes.all)
    found = await asyncio.to_thread(select, every, objective=objective, majority=majority, held_out=held_out)
    served = studio.served
    shown = [{**one.row, "votes": len(one.votes), "from": _authors(one)} for one in found.train[:SHOWN]]
    return JSONResponse(
        {
            "votes": len(every),
            "used": found.used,
            "train": len(found.train),
            "held_out": len(found.held),
            "prompts": len({one.asked for one in [*found.train, *found.held]}),
            "left_out": [
                {"reason": reason, "why": why, "votes": found.left_out[reason]}
                for reason, why in REASONS.items()
                if found.left_out[reason]
            ],
            "rows": shown,
            "presets": PRESETS,
            "base": None if served is None else str(served.base.name),
            "adapters": [] if served is None else [info.name for info in served.registry.infos()],
        }
    )


@router.post("/preferences")
@role("manage")
async def learn(request: Request, wanted: Wanted) -> JSONResponse:
    """Write the rows of the votes and start a run on them. Returns the run's name and the number of rows."""
    studio = studio_of(request)
    if studio.served is None:
        raise ApiError(409, "no model is served: start the studio with one to learn on", code="no_model")
    votes = await asyncio.to_thread(votes_of, request)
    every = await asyncio.to_thread(votes.all)
    found = await asyncio.to_thread(
        select, every, objective=wanted.objective, majority=wanted.majority, held_out=wanted.held_out
    )
    if not found.train:
        raise ApiError(
            409, "no vote makes a row to learn from: vote for one of two answers first", code="no_pairs"
        )
    await asyncio.to_thread(_begin, studio.home, studio.served, found, wanted, votes.path)
    return JSONResponse({"run": wanted.name, "train": len(found.train), "held_out": len(found.held)})


def _begin(home: Path, served: Served, found: Selection, wanted: Wanted, votes: Path) -> None:
    """Write the files and start the run. Raises UsageError and ApiError, and leaves nothing behind then."""
    if not NAME.fullmatch(wanted.name):
        raise ApiError(
            400,
            f"{wanted.name[:80]!r} is no name of a run: letters, digits, '.', '_' and '-', at most 64, "
            "the first a letter or a digit",
            param="name",
        )
    folder = home / DESK / f"{wanted.name}.votes"
    with _writing:
        if (home / wanted.name).exists() or folder.exists():
            raise ApiError(409, f"there is a run {wanted.name} already: choose another name", param="name")
        recipe = recipe_of(served, found, wanted, folder)
        with storage.new_folder(folder) as draft:
            write(draft, found, wanted, votes)
        origin = {
            "votes": sum(len(one.votes) for one in [*found.train, *found.held]),
            "pairs": len(found.train) + len(found.held),
            "from": "/studio/preferences",
            "rows": str(folder),
        }
        try:
            start(home, recipe, wanted.name, origin)
        except BaseException:
            storage.remove(folder)
            raise


def recipe_of(served: Served, found: Selection, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Return the recipe of a run.  folder: of its rows. Raises AdapterError for an unknown adapter."""
    preset, base = PRESETS[wanted.objective], served.base
    batch = BATCH
    while batch > 1 and batch * STEPS > len(found.train):
        batch //= 2
    stage = {
        "name": "preference", "objective": wanted.objective,
        "beta": wanted.beta or preset["beta"], "sft_weight": preset["sft_weight"],
    }  # fmt: skip
    room = context_length(base.model.config) or LONGEST
    recipe: dict[str, Any] = {
        "model": str(place_of(str(base.name))),
        "quant": base.quant,
        "dtype": DTYPES.get(str(base.dtype), "auto"),
        "stage": stage,
        "data": {
            "train": str((folder / "train.jsonl").absolute()),
            "eval": str((folder / "held-out.jsonl").absolute()) if found.held else None,
            "max_length": min(LONGEST, room),
        },
        "train": {
            "epochs": wanted.epochs or preset["epochs"],
            "batch_size": batch,
            "micro_batch_size": min(ROWS, batch),
            "lr": wanted.lr or preset["lr"],
        },
    }
    if wanted.start is None:
        recipe["method"] = {"name": "lora", "r": 16, "lora_alpha": 32}
    else:
        recipe["adapter"] = str(served.registry.known(wanted.start).folder.absolute())
    return recipe


def write(folder: Path, found: Selection, wanted: Wanted, votes: Path) -> None:
    """Write the rows and where each comes from.  votes: the file that they were read from."""
    rows = []
    for name, learnt in (("train.jsonl", found.train), ("held-out.jsonl", found.held)):
        if learnt:
            lines = [json.dumps(one.row, ensure_ascii=False) + "\n" for one in learnt]
            storage.write(folder / name, "".join(lines).encode())
            rows += [_provenance(name, number, one) for number, one in enumerate(learnt, 1)]
    facts = {
        "made": time.time(),
        "votes": str(votes.absolute()),
        "objective": wanted.objective,
        "majority": wanted.majority,
        "held_out": wanted.held_out,
        "left_out": dict(found.left_out),
        "rows": rows,
    }
    storage.write_json(folder / "provenance.json", facts)


def _provenance(file: str, line: int, learnt: Learnt) -> dict[str, Any]:
    return {"file": file, "line": line, "votes": [_told(vote) for vote in learnt.votes]}


def _told(vote: Vote) -> dict[str, Any]:
    a, b = vote.battle.sides
    return {
        "battle": vote.battle.id,
        "verdict": vote.verdict,
        "a": {"model": a.name, "digest": a.digest},
        "b": {"model": b.name, "digest": b.digest},
        "sampling": vote.battle.sampling,
        "answered": vote.battle.created,
        "voted": vote.created,
        "voter": vote.voter,
        "reason": vote.reason,
        "tags": list(vote.tags),
    }


def _authors(learnt: Learnt) -> list[str]:
    """Return who wrote a row's answers: the better one first, where one is better."""
    vote = learnt.votes[0]
    names = [side.name for side in vote.battle.sides]
    return names[::-1] if vote.verdict == "b" else names
