"""Jobs, items and results, as clients send and see them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from api.ids import FileId
from api.schemas.base import BUCKET, Answer, Id, Metadata, Moment, Request
from api.schemas.exports import ExportRequest
from pipelines.jobs.models import JobPriority
from pipelines.jobs.states import ItemState, JobState

PRIORITIES = {"interactive": JobPriority.INTERACTIVE, "normal": JobPriority.NORMAL, "bulk": JobPriority.BULK}
Priority = Literal["interactive", "normal", "bulk"]

# For the contract's readers: what refuses a URL (`steps.access`) says better what to change than a pattern could.
_KEY = r"[^/\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*"
_FILE = "file-[0-9a-f]{32}"
_ANY_MEDIUM = {"pattern": rf"^(?:{BUCKET}{_KEY}|https://\S+|{_FILE})$"}
_ANY_OBJECT = {"pattern": rf"^(?:{BUCKET}{_KEY}|{_FILE})$"}
_ANY_PREFIX = {"pattern": rf"^{BUCKET}(?:{_KEY})?$"}

MediaUrl = Annotated[str, Field(min_length=1, max_length=8_192, json_schema_extra=_ANY_MEDIUM)]
ObjectUrl = Annotated[str, Field(min_length=1, max_length=8_192, json_schema_extra=_ANY_OBJECT)]
PrefixUrl = Annotated[str, Field(min_length=1, max_length=8_192, json_schema_extra=_ANY_PREFIX)]


def _one_of(*names: str) -> dict[str, Any]:
    """A JSON schema in which one of these fields is given, and the others are not, or null."""
    return {
        "oneOf": [
            {
                "required": [name],
                "properties": {other: {"type": "string" if other == name else "null"} for other in names},
            }
            for name in names
        ]
    }


class MediaEntry(Request):
    """One medium: where it lies, what you call it, its own parameters."""

    model_config = ConfigDict(json_schema_extra=_one_of("url", "file_id"))

    url: MediaUrl | None = Field(None, description="`s3://bucket/key`, or `https://…` where the installation allows it")
    file_id: FileId | None = Field(None, description="an uploaded file, instead of `url`")
    id: str | None = Field(None, min_length=1, max_length=1_024, description="your name for it; shown with its result")
    parameters: dict[str, JsonValue] | None = Field(None, description="parameters for this medium alone")
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _one_address(self) -> MediaEntry:
        if (self.url is None) == (self.file_id is None):
            raise ValueError("name the medium by url or by file_id, one of both")
        return self


class MediaSource(Request):
    """Media listed in the request."""

    type: Literal["media"]
    media: list[MediaEntry] = Field(min_length=1)


class PrefixSource(Request):
    """All objects under a prefix (ending in `/`), or those that a glob matches."""

    type: Literal["prefix"]
    url: PrefixUrl = Field(examples=["s3://scans/2026/", "s3://media/clips/**/*.mp4"])


class ManifestSource(Request):
    """A list of media as JSON Lines or CSV: an object, an uploaded file, or the text itself."""

    model_config = ConfigDict(json_schema_extra=_one_of("url", "file_id", "inline"))

    type: Literal["manifest"]
    url: ObjectUrl | None = None
    file_id: FileId | None = None
    inline: str | None = Field(None, min_length=1)
    format: Literal["jsonl", "csv"]

    @model_validator(mode="after")
    def _one_place(self) -> ManifestSource:
        if sum(value is not None for value in (self.url, self.file_id, self.inline)) != 1:
            raise ValueError("give the manifest as url, as file_id, or as inline text, one of the three")
        return self


class FilesSource(Request):
    """Uploaded files."""

    type: Literal["files"]
    file_ids: list[FileId] = Field(min_length=1)


class NoSource(Request):
    """No media: for kinds that need none."""

    type: Literal["none"]


Source = Annotated[MediaSource | PrefixSource | ManifestSource | FilesSource | NoSource, Field(discriminator="type")]


class JobWebhook(Request):
    """Who is told of this job's end beside those who subscribe to its event."""

    endpoint_id: Id = Field(description="a webhook endpoint of yours, whatever it subscribes to")


class JobRequest(Request):
    """One job of one kind over one source. `parameters` are the kind's; see `GET /v1/kinds`."""

    kind: str = Field(min_length=1, max_length=100)
    source: Source
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    priority: Priority = "normal"
    metadata: Metadata = Field(default_factory=dict)
    deadline_at: Moment | None = Field(None, description="items that have not run by then fail")
    dry_run: bool = Field(default=False, description="count and estimate, run and store nothing; answered with 200")
    export: ExportRequest | None = Field(None, description="write the results to objects when the job ends, in any way")
    webhook: JobWebhook | None = None


class RedriveRequest(Request):
    """Which failed items run again: all, or those with one of these error codes."""

    codes: list[Annotated[str, Field(min_length=1, max_length=100)]] | None = Field(None, min_length=1, max_length=100)


class Counts(Answer):
    """Items by state."""

    pending: int = 0
    preparing: int = 0
    ready: int = 0
    inferring: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class Usage(Answer):
    """What was spent. `cost` at the configured rate for a second of device time."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tiles: int = 0
    device_seconds: float = 0.0
    cost: float = 0.0


class Failure(Answer):
    """A stable code and a sentence."""

    code: str
    message: str


class Job(Answer):
    """A job. `total`: items known so far, all of them once `planned`."""

    id: uuid.UUID
    object: Literal["job"] = "job"
    kind: str
    state: JobState
    priority: Priority
    parameters: dict[str, Any]
    source: dict[str, Any] = Field(description="long lists are shortened; `count` is what was sent")
    metadata: dict[str, Any]
    counts: Counts
    total: int
    planned: bool
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None = None
    queue_position: int | None = Field(None, description="unfinished jobs ahead, while queued")
    usage: Usage
    errors: dict[str, int] = Field(description="failed items by error code")
    error: Failure | None = Field(None, description="why the job itself failed")
    parent_id: uuid.UUID | None = None
    schedule_id: uuid.UUID | None = Field(None, description="the schedule it is a run of, or a redrive of one")
    schedule_run_id: uuid.UUID | None = None
    webhook_endpoint_id: uuid.UUID | None = None
    version: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    links: dict[str, str]


class Item(Answer):
    """One medium, or one page of one, with its questions. `page` is 1-based."""

    object: Literal["item"] = "item"
    job_id: uuid.UUID
    seq: int
    document: int
    name: str
    page: int | None = None
    media: list[str]
    metadata: dict[str, Any]
    state: ItemState
    attempt: int
    losses: int
    tiles: int | None = None
    worker: str | None = None
    error: Failure | None = None
    text: str | None = None
    output: dict[str, Any] | None = None
    flags: list[str] | None = None
    created_at: datetime
    prepared_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Result(Answer):
    """What an item answered, or why it did not. One line of the JSONL. `page` is 1-based."""

    object: Literal["result"] = "result"
    job_id: uuid.UUID
    seq: int
    document: int
    name: str
    page: int | None = None
    metadata: dict[str, Any]
    state: ItemState
    attempt: int
    text: str | None = None
    output: dict[str, Any] | None = None
    flags: list[str] = Field(default_factory=list)
    finish_reason: str | None = None
    media_hash: str | None = None
    mean_logprob: float | None = None
    usage: Usage | None = None
    provenance: dict[str, Any] | None = None
    error: Failure | None = None
    created_at: datetime | None = None
