"""Answers of any size straight to a file: beside its place while it grows, at its place once it is whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Literal

from .calls import Call, Lost, More, Operation, Pause, Piece
from .errors import ConnectionFailed
from .reading import Core, given, id_of
from .retry import exchange

_TIMEOUT = 3_600.0
_MEDIA = {"jsonl": "application/x-ndjson", "markdown": "text/markdown"}

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes so far, and how many there will be (None where nobody knows)."""


def save_results(
    core: Core,
    job_id: str,
    target: str | PathLike[str],
    *,
    form: Literal["jsonl", "markdown"] = "jsonl",
    include: str = "succeeded",
    on_progress: OnBytes | None = None,
) -> Operation[Path]:
    """Write the results to a file, in flat memory: JSON Lines, or each document's pages in order as Markdown.

    After a broken connection JSON Lines go on behind the last whole line; Markdown begins anew.
    """
    path = Path(target)
    after: int | None = None
    lost = 0
    with _growing(path) as out:
        while True:
            query = given({"include": include, "after": None if after is None else str(after)})
            call = Call(
                method="GET",
                path=f"/v1/jobs/{id_of(job_id)}/results",
                query=query if form == "jsonl" else {},
                headers={"accept": _MEDIA[form]},
                timeout=_TIMEOUT,
                stream=True,
            )
            yield from exchange(call, core.retry)
            if form == "markdown":
                out.seek(0)
                out.truncate()
            rest = b""
            while isinstance(answer := (yield More()), Piece) and answer.data:
                whole, rest = _whole(rest + answer.data) if form == "jsonl" else (answer.data, b"")
                if not whole:
                    continue
                out.write(whole)
                lost = 0
                if form == "jsonl":
                    after = json.loads(whole.splitlines()[-1])["seq"]
                if on_progress is not None:
                    on_progress(out.tell(), None)
            if not isinstance(answer, Lost):
                return path
            yield from _again(core, answer, lost)
            lost += 1


def download(
    core: Core, file_id: str, target: str | PathLike[str], *, on_progress: OnBytes | None = None
) -> Operation[Path]:
    """Write the bytes of an uploaded (or a batch's) file to a file here. A broken connection begins anew."""
    path = Path(target)
    lost = 0
    with _growing(path) as out:
        while True:
            call = Call(method="GET", path=f"/v1/files/{id_of(file_id)}/content", timeout=_TIMEOUT, stream=True)
            reply = yield from exchange(call, core.retry)
            size = reply.headers.get("content-length")
            total = int(size) if size and size.isdigit() else None
            out.seek(0)
            out.truncate()
            while isinstance(answer := (yield More()), Piece) and answer.data:
                out.write(answer.data)
                if on_progress is not None:
                    on_progress(out.tell(), total)
            if not isinstance(answer, Lost):
                return path
            yield from _again(core, answer, lost)
            lost += 1


def _whole(data: bytes) -> tuple[bytes, bytes]:
    """The lines that are whole, and the beginning of the next."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _again(core: Core, answer: Lost, lost: int) -> Operation[None]:
    if lost >= core.retry.retries:
        raise ConnectionFailed(answer.reason) from answer.cause
    yield Pause(seconds=core.retry.pause(lost, None))


@contextlib.contextmanager
def _growing(path: Path) -> Iterator[IO[bytes]]:
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
