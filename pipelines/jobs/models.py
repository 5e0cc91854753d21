"""The frozen values that travel between the rooms."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipelines.jobs.states import ItemState, JobState, PlanState

JsonObject = Mapping[str, Any]


class JobPriority(enum.IntEnum):
    """Dispatch order; a lower number goes first. Interactive items have queues and engine slots of their own."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2


@dataclass(frozen=True, kw_only=True)
class MediaRef:
    """One medium at its source.

    `url`: `s3://bucket/key`, `https://…`, or `upload:<file id>`. `version`: the object version or quoted ETag that was
    pinned, once known (at listing for a prefix, at the first fetch for everything else). `size` in bytes where known.
    """

    url: str
    version: str | None = None
    size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form stored in `documents.media`."""
        return {"url": self.url, "version": self.version, "size": self.size}

    @classmethod
    def from_json(cls, value: JsonObject) -> MediaRef:
        """The inverse of `to_json`."""
        return cls(url=value["url"], version=value.get("version"), size=value.get("size"))


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """The part of a job that never changes: what workers cache by id. `parameters` are the kind's, validated.

    `only_new_of`: the schedule whose earlier runs have done what this job leaves out.
    """

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    kind: str
    parameters: JsonObject
    source: JsonObject
    priority: JobPriority
    deadline_at: datetime | None = None
    allowed_buckets: tuple[str, ...] | None = None
    only_new_of: uuid.UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as clients see it."""

    job_id: uuid.UUID
    tenant_id: uuid.UUID
    kind: str
    state: JobState
    priority: JobPriority
    parameters: JsonObject
    source: JsonObject
    metadata: JsonObject
    plan: PlanState
    item_count: int
    counts: Mapping[ItemState, int]
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    deadline_at: datetime | None
    parent_id: uuid.UUID | None
    error_code: str | None = None
    error_message: str | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    usage: JsonObject = field(default_factory=dict)
    schedule_id: uuid.UUID | None = None
    schedule_run_id: uuid.UUID | None = None
    webhook_endpoint_id: uuid.UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A source entry: one medium (or, for `chat`, several), its own parameters where a manifest gave some."""

    job_id: uuid.UUID
    doc: int
    name: str
    media: tuple[MediaRef, ...]
    overrides: JsonObject = field(default_factory=dict)
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PackRef:
    """Where an item's prepared pixels lie: blob key, SHA-256 of the blob, its bytes, its tiles.

    `data`: the pack itself, where it is small and the claim brought it along.
    """

    key: str
    sha256: str
    size: int
    tiles: int
    data: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ClaimedItem:
    """An item under a lease of ours. `attempt` is the fencing token: every later write names it."""

    job_id: uuid.UUID
    seq: int
    attempt: int
    losses: int
    fails: int
    page: int | None
    document: Document
    pack: PackRef | None = None
    media_hash: str | None = None

    @property
    def suspect(self) -> bool:
        """True once a worker died while it held this item."""
        return self.losses > 0


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """What a succeeded item stores. `text` is the readable answer, `output` the kind's structured one."""

    text: str
    output: JsonObject
    flags: tuple[str, ...]
    finish_reason: str
    media_hash: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tiles: int
    device_seconds: float
    mean_logprob: float | None
    provenance: JsonObject
