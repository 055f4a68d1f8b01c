"""The route of the rows page: the report of graft's data checks, and rows as a model sees them."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from graft.recipe.stages import stage_cards
from graft.serve.failures import ApiError
from graft.serve.security import role
from graft.serve.studio.commands import answered
from graft.serve.studio.facts import report_facts

router = APIRouter(prefix="/studio/api", tags=["rows"])
SHOWN = 6  # rows
TOKENS = 1_000  # of a row that are shown
Line = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]


class Looked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: Line  # file, folder or seedling:NAME
    model: Line = "seedling"
    stage: Line = "sft"
    max_length: Annotated[int, Field(ge=1, le=10_000_000)] = 1024
    template: Line | None = None
    rows: Annotated[int, Field(ge=1, le=20)] = SHOWN


@router.post("/rows")
@role("manage")
async def rows(request: Request, asked: Looked) -> dict[str, Any]:
    """Return what the checks say of rows, and the first ones token by token, with what is learnt of them.

    Rows that cannot be used are listed by file and line; only if none is left is that an error.
    """
    words = ["data", "show", "--json", "--tokens", "--bad-rows=skip", f"--rows={asked.rows}"]
    words += [f"--model={asked.model}", f"--stage={asked.stage}", f"--max-length={asked.max_length}"]
    words += [f"--template={asked.template}"] if asked.template is not None else []
    try:
        report = await answered(request, [*words, "--", asked.data])
    except ApiError as error:
        if asked.stage not in stage_cards():
            error.param = "stage"
        raise
    facts = report_facts(report)
    for sample in facts["samples"]:
        sample["more"] = max(len(sample["pieces"]) - TOKENS, 0)
        sample["pieces"] = sample["pieces"][:TOKENS]
    return facts
