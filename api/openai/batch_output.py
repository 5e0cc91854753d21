"""A batch's output and error files, written once it has ended: JSON Lines in OpenAI's form, in flat memory.

The files' ids follow from the job's, so two replicas that write at once write the same, and a server that dies while it
writes is made up for by the next one (`api.openai.batch_writer`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from api.errors import body_of, status_of
from api.services import Services
from pipelines.control import query
from pipelines.control.query import JobView, ResultView
from pipelines.jobs.states import ItemState
from pipelines.steps.batch_file import ENDPOINT
from pipelines.store import files
from pipelines.store.files import NewFile

_PAGE = 500
_KEPT = timedelta(days=30)
_UNANSWERED = {"deadline_exceeded": "batch_expired", None: "batch_cancelled"}
_STATES = {"output": (ItemState.SUCCEEDED,), "error": (ItemState.FAILED, ItemState.CANCELLED)}


def file_id_of(job_id: uuid.UUID, which: str) -> uuid.UUID:
    """The id of a batch's `output` or `error` file."""
    return uuid.uuid5(job_id, which)


def wanted(view: JobView) -> tuple[str, ...]:
    """Which files an ended batch has."""
    counts = view.job.counts
    return tuple(which for which, states in _STATES.items() if any(counts.get(state) for state in states))


def kept(view: JobView) -> timedelta:
    """For how long the files are kept."""
    seconds = view.job.source.get("kept_seconds")
    return _KEPT if seconds is None else timedelta(seconds=int(seconds))


def outlived(view: JobView) -> bool:
    """True once the files have expired: they are not written any more."""
    ended = view.job.finished_at
    return ended is not None and ended + kept(view) <= datetime.now(UTC)


class _Superseded(Exception):
    """Another server writes the file now."""


def write(services: Services, view: JobView, which: str, *, renew: Callable[[], bool]) -> bool:
    """Write one of the files and record it. Repeatable.

    `renew` is called before each page of results; where it says False, the writing ends with that answer.
    """
    try:
        _write(services, view, which, renew)
    except _Superseded:
        return False
    return True


def _write(services: Services, view: JobView, which: str, renew: Callable[[], bool]) -> None:
    job = view.job
    file_id = file_id_of(job.job_id, which)
    key = f"files/{job.tenant_id}/{file_id}"
    stat = services.blobs.put(key, _lines(services, view, which, renew))
    new = NewFile(
        file_id=file_id,
        tenant_id=job.tenant_id,
        filename=f"batch_{job.job_id.hex}_{which}.jsonl",
        purpose="batch_output",
        blob_key=key,
        size=stat.size,
        sha256=stat.sha256 or "",
        media_type="application/jsonl",
        expires_at=datetime.now(UTC) + kept(view),
    )
    try:
        with services.database.begin() as conn:
            files.insert(conn, new)
    except IntegrityError:
        return  # another replica was faster, with the same bytes


def missing(conn: Connection, view: JobView) -> tuple[str, ...]:
    """Those of the wanted files that are not written yet."""
    ids = {which: file_id_of(view.job.job_id, which) for which in wanted(view)}
    found = files.existing(conn, view.job.tenant_id, list(ids.values())) if ids else frozenset()
    return tuple(which for which, file_id in ids.items() if file_id not in found)


def _lines(services: Services, view: JobView, which: str, renew: Callable[[], bool]) -> Iterator[bytes]:
    after, model = -1, services.settings.model_name
    while True:
        if not renew():
            raise _Superseded
        with services.database.begin() as conn:
            page = query.read_results(
                conn, view.job.tenant_id, view.job.job_id, states=_STATES[which], after=after, limit=_PAGE
            )
        yield b"".join(json.dumps(_line(result, model), ensure_ascii=False).encode() + b"\n" for result in page)
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def _line(result: ResultView, model: str) -> dict[str, Any]:
    request = f"{result.job_id.hex}_{result.seq}"
    line: dict[str, Any] = {"id": f"batch_req_{request}", "custom_id": result.name, "response": None, "error": None}
    if result.state is ItemState.SUCCEEDED:
        line["response"] = {"status_code": 200, "request_id": f"req_{request}", "body": completion(result, model)}
        return line
    code = result.error_code
    if code in _UNANSWERED:
        line["error"] = {"code": _UNANSWERED[code], "message": result.error_message or "the request was not run"}
        return line
    status = status_of(code or "internal_error")
    problem = body_of(
        status=status,
        code=code or "internal_error",
        message=result.error_message or "",
        param=None,
        instance=ENDPOINT,
    )
    line["response"] = {
        "status_code": status,
        "request_id": f"req_{request}",
        "body": {"error": problem["error"]},
    }
    return line


def completion(result: ResultView, model: str) -> dict[str, Any]:
    """A chat completion of a stored result."""
    made = result.created_at.timestamp() if result.created_at else 0
    return {
        "id": f"chatcmpl-{result.job_id.hex}-{result.seq}",
        "object": "chat.completion",
        "created": int(made),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": result.text or "", "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if result.finish_reason == "length" else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
        },
    }
