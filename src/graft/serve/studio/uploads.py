"""Files of rows that a page sends: streamed into HOME/files, never over another one.

    PUT /studio/api/files/NAME     application/octet-stream, at most 1 GiB

The gate lets these bodies through unread, so the bounds are kept here. A file has its name once it is whole.
"""

import asyncio
import os
import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from graft.serve.failures import ApiError
from graft.serve.security import role
from graft.serve.studio.state import studio_of
from graft.sizes import GIB, size
from graft.storage import free_bytes, named_errors

router = APIRouter(prefix="/studio/api", tags=["rows"])
FILES = "files"
KINDS = ("jsonl", "json", "csv", "tsv", "txt", "md", "parquet", "conllu")
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,99}}(\.[A-Za-z0-9_-]{{1,32}}){{0,3}}\.({'|'.join(KINDS)})")
MOST = GIB
SPARE = GIB  # bytes of the disk that stay free
IDLE_S = 30.0
AT_ONCE = 4


def files_in(home: Path) -> list[dict[str, Any]]:
    """Return the files that were sent: {name, bytes, changed}, the newest first."""
    found = []
    for path in (home / FILES).glob("*"):
        if NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            told = path.stat()
            found.append({"name": path.name, "bytes": told.st_size, "changed": told.st_mtime})
    return sorted(found, key=lambda file: -file["changed"])


@router.get("/files")
@role("infer")
async def files(request: Request) -> dict[str, Any]:
    """Return the files that were sent."""
    home = studio_of(request).home
    return {"folder": str(home / FILES), "files": await asyncio.to_thread(files_in, home)}


@router.put("/files/{name}", status_code=201)
@role("manage")
async def put(request: Request, name: str) -> dict[str, Any]:
    """Take a file. It has its name when it is whole; one that is there is never written over."""
    if not NAME.fullmatch(name):
        raise ApiError(
            400,
            f"{name[:80]!r} is no name of a file of rows: letters, digits, '_' and '-', then one of "
            f"{', '.join('.' + kind for kind in KINDS)}; rename it",
            param="name",
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/octet-stream":
        raise ApiError(415, "a file is sent with Content-Type: application/octet-stream", code="not_bytes")
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > MOST:
        raise ApiError(413, f"the file has more than {size(MOST)}", code="body_too_large")
    folder = studio_of(request).home / FILES
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    if (folder / name).exists():
        raise ApiError(409, f"there is a file {name} already: give this one another name", param="name")
    if free_bytes(folder) < int(stated) + SPARE:
        raise ApiError(413, f"the disk has too little room: {size(free_bytes(folder))}", code="disk_full")
    state = request.app.state
    state.uploads = getattr(state, "uploads", 0) + 1
    part = folder / f".{name}.{secrets.token_hex(4)}.part"
    try:
        if state.uploads > AT_ONCE:
            raise ApiError(429, f"{AT_ONCE} files are being sent: wait for one", retry_after_s=5)
        with named_errors("while writing it", folder / name):
            written = await _received(request, part, int(stated) or None)
            await asyncio.to_thread(_named, part, folder / name)
    finally:
        state.uploads -= 1
        part.unlink(missing_ok=True)
    return {"name": name, "bytes": written, "path": str(folder / name)}


async def _received(request: Request, part: Path, stated: int | None) -> int:
    """Write the body into a file, and return how many bytes it has. Raises ApiError beyond the bounds."""
    written = 0
    stream = request.stream()
    with open(part, "xb") as file:
        while True:
            try:
                piece = await asyncio.wait_for(anext(stream, None), IDLE_S)
            except TimeoutError:
                raise ApiError(408, f"nothing came for {IDLE_S:.0f} s", code="timeout") from None
            except ClientDisconnect:
                raise ApiError(499, "the page has gone", code="gone") from None
            if piece is None:
                break
            written += len(piece)
            if written > MOST:
                raise ApiError(413, f"the file has more than {size(MOST)}", code="body_too_large")
            await asyncio.to_thread(file.write, piece)
        if stated is not None and written != stated:
            raise ApiError(400, f"{written:,} bytes came of {stated:,}", code="cut")
        if not written:
            raise ApiError(400, "the file is empty: choose one with rows", code="empty")
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    return written


def _named(part: Path, path: Path) -> None:
    """Give a whole file its name. Raises ApiError if another one has it by now."""
    try:
        os.link(part, path)  # which, unlike a rename, never replaces
    except FileExistsError:
        raise ApiError(
            409, f"there is a file {path.name} already: give this one another name", param="name"
        ) from None
