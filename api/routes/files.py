"""Files: uploads in OpenAI's form, and presigned ones for what is large."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import Connection

from api import views
from api.dependencies import FilesRead, FilesWrite, ServicesDep
from api.documentation import PROBLEMS, problems
from api.ids import FileId, file_uuid, show_file
from api.jsonbody import StrictRoute
from api.routes.jobs import page_of
from api.schemas import files as schema
from api.schemas.base import Page
from api.services import Services
from api.uploads import blob_key, expiry_seconds, receive
from pipelines.blobs.base import Hashed
from pipelines.jobs.errors import (
    Conflict,
    InvalidParameter,
    MediaNotFound,
    NotFound,
    RequestTooLarge,
    SourceDisabled,
)
from pipelines.jobs.ids import uuid7
from pipelines.store import files as store
from pipelines.store.files import NewFile, StoredFile
from pipelines.store.tenants import Principal

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictRoute, responses=PROBLEMS)

_PRESIGNED_SECONDS = 3_600
_PENDING = "pending"
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "dependentRequired": {"expires_after[anchor]": ["expires_after[seconds]"]},
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(get_args(schema.Purpose)), "default": "user_data"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post(
    "",
    operation_id="uploadFile",
    response_model=schema.File,
    responses=problems(413, 415),
    openapi_extra=_FORM,
    summary="Upload a file",
)
async def upload_file(request: Request, services: ServicesDep, caller: FilesWrite) -> JSONResponse:
    """The bytes are streamed to the blob store; equal content of yours is stored once."""
    file_id = uuid7()
    received = await receive(services, request, blob_key(caller.tenant_id, file_id))
    try:
        purpose = _purpose(received.fields.get("purpose", "user_data"))
        seconds = expiry_seconds(received.fields)
        if purpose == "batch" and received.size > services.settings.max_batch_bytes:
            raise RequestTooLarge(f"a batch file may have {services.settings.max_batch_bytes} bytes; split it")
        new = NewFile(
            file_id=file_id,
            tenant_id=caller.tenant_id,
            filename=received.filename,
            purpose=purpose,
            blob_key=received.blob_key,
            size=received.size,
            sha256=received.sha256,
            media_type=received.media_type[:255],
            expires_at=None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds),
        )
        stored = await services.transact(lambda conn: _recorded(conn, new))
    except BaseException:
        await services.in_thread(lambda: services.blobs.delete(received.blob_key))
        raise
    if stored.blob_key != received.blob_key:
        await services.in_thread(lambda: services.blobs.delete(received.blob_key))
    return JSONResponse(views.file(stored).model_dump(mode="json"))


@router.get("", operation_id="listFiles", response_model=Page[schema.File], summary="List files")
async def list_files(
    *,
    services: ServicesDep,
    caller: FilesRead,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[FileId | None, Query(description="`last_id` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> JSONResponse:
    """Newest first, unless `order=asc`."""
    behind = None if after is None else file_uuid(after)
    found = await services.transact(
        lambda conn: store.list_files(
            conn, caller.tenant_id, limit=limit + 1, after=behind, purpose=purpose, descending=order == "desc"
        )
    )
    shown = [views.file(stored).model_dump(mode="json") for stored in found[:limit]]
    return JSONResponse(page_of(shown, "id", more=len(found) > limit))


@router.post(
    "/presigned",
    operation_id="presignUpload",
    status_code=201,
    responses=problems(409, 413),
    summary="Upload a large file past the api",
)
async def presign_upload(
    body: schema.PresignRequest, services: ServicesDep, caller: FilesWrite
) -> schema.PresignedUpload:
    """PUT the bytes to `url`, then POST to `complete_url`: the file can be used from then on."""
    if body.bytes > services.settings.max_upload_bytes:
        raise RequestTooLarge(f"a file may have {services.settings.max_upload_bytes} bytes", param="bytes")
    file_id = uuid7()
    key = blob_key(caller.tenant_id, file_id)
    url = await services.in_thread(lambda: services.blobs.presign_put(key, expires=_PRESIGNED_SECONDS))
    if url is None:
        raise SourceDisabled("this installation's blob store has no presigned uploads; POST the file to /v1/files")
    expires = datetime.now(UTC) + timedelta(seconds=_PRESIGNED_SECONDS)
    new = NewFile(
        file_id=file_id,
        tenant_id=caller.tenant_id,
        filename=body.filename,
        purpose=body.purpose,
        blob_key=key,
        size=body.bytes,
        sha256="",
        media_type=body.media_type or "application/octet-stream",
        status=_PENDING,
    )
    stored = await services.transact(lambda conn: store.insert(conn, new))
    return schema.PresignedUpload(
        file=views.file(stored),
        url=url,
        headers={},
        expires_at=int(expires.timestamp()),
        complete_url=f"/v1/files/{show_file(file_id)}/complete",
    )


@router.post(
    "/{file_id}/complete",
    operation_id="completeUpload",
    response_model=schema.File,
    responses=problems(404, 409, 413),
    summary="Say that a presigned upload has arrived",
)
async def complete_upload(file_id: str, services: ServicesDep, caller: FilesWrite) -> JSONResponse:
    """Reads the bytes once, to record their size and hash."""
    found = await services.transact(lambda conn: _found(conn, caller, file_uuid(file_id)))
    if found.status != _PENDING:
        return JSONResponse(views.file(found).model_dump(mode="json"))
    hashed = await services.in_thread(lambda: _hashed(services, found))

    def work(conn: Connection) -> StoredFile:
        done = store.complete(
            conn,
            caller.tenant_id,
            found.file_id,
            size=hashed.size,
            sha256=hashed.sha256,
            media_type=found.media_type,
        )
        return done or _found(conn, caller, found.file_id)

    return JSONResponse(views.file(await services.transact(work)).model_dump(mode="json"))


@router.get(
    "/{file_id}", operation_id="getFile", response_model=schema.File, responses=problems(404), summary="Read a file"
)
async def get_file(file_id: str, services: ServicesDep, caller: FilesRead) -> JSONResponse:
    """What is known of it."""
    found = await services.transact(lambda conn: _found(conn, caller, file_uuid(file_id)))
    return JSONResponse(views.file(found).model_dump(mode="json"))


@router.get(
    "/{file_id}/content",
    operation_id="getFileContent",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "its bytes"}, **problems(404, 409)},
    summary="Download a file",
)
async def get_file_content(file_id: str, services: ServicesDep, caller: FilesRead) -> StreamingResponse:
    """Streamed, as it was uploaded."""
    found = await services.transact(lambda conn: _found(conn, caller, file_uuid(file_id)))
    if found.status == _PENDING:
        raise Conflict("the file's bytes have not arrived; PUT them, then complete the upload")
    try:
        stream = await services.in_thread(lambda: services.blobs.stream(found.blob_key))
    except MediaNotFound as error:
        raise NotFound("the file's bytes are gone") from error
    return StreamingResponse(
        stream,
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(found.size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.filename, safe='')}",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.delete(
    "/{file_id}",
    operation_id="deleteFile",
    response_model=schema.DeletedFile,
    responses=problems(404),
    summary="Delete a file",
)
async def delete_file(file_id: str, services: ServicesDep, caller: FilesWrite) -> JSONResponse:
    """Items that still need it will fail."""

    def work(conn: Connection) -> StoredFile:
        removed = store.delete(conn, caller.tenant_id, file_uuid(file_id))
        if removed is None:
            raise NotFound("there is no such file")
        for key in store.unused(conn, [removed.blob_key]):
            services.blobs.delete(key)
        return removed

    removed = await services.transact(work)
    return JSONResponse(schema.DeletedFile(id=show_file(removed.file_id)).model_dump(mode="json"))


def _purpose(value: str) -> str:
    known = get_args(schema.Purpose)
    if value not in known:
        raise InvalidParameter(f"purpose must be one of {', '.join(known)}", param="purpose")
    return value


def _recorded(conn: Connection, new: NewFile) -> StoredFile:
    """The row; it names an older blob where the tenant has one of equal content, which is then locked."""
    older = store.find_content(conn, new.tenant_id, new.sha256)
    return store.insert(conn, new if older is None else replace(new, blob_key=older.blob_key))


def _found(conn: Connection, caller: Principal, file_id: uuid.UUID) -> StoredFile:
    found = store.get(conn, caller.tenant_id, file_id)
    if found is None:
        raise NotFound("there is no such file")
    return found


def _hashed(services: Services, found: StoredFile) -> Hashed:
    limit = services.settings.max_upload_bytes
    try:
        if services.blobs.stat(found.blob_key).size > limit:
            raise RequestTooLarge(f"the file is larger than {limit} bytes")
        hashed = Hashed(services.blobs.stream(found.blob_key))
        for _ in hashed:
            pass
    except MediaNotFound as error:
        raise Conflict("nothing has been PUT to the presigned address yet") from error
    return hashed
