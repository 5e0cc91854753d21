"""What the server answers, as frozen values. Fields that a newer server adds are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

Json = Mapping[str, Any]
T = TypeVar("T")

TERMINAL = frozenset({"succeeded", "partial", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why something ended: a stable code and a sentence."""

    code: str
    message: str

    @classmethod
    def from_json(cls, value: Json) -> Failure:
        """From the server's form."""
        return cls(code=value["code"], message=value["message"])


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was spent. `cost` at the rate that the server is configured with."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tiles: int = 0
    device_seconds: float = 0.0
    cost: float = 0.0

    @classmethod
    def from_json(cls, value: Json) -> Usage:
        """From the server's form."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if value.get(name) is not None})


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """What all jobs created in a time have spent, and what lies there now."""

    jobs: int
    stored_bytes: int
    active_items: int
    spent: Usage

    @classmethod
    def from_json(cls, value: Json) -> UsageReport:
        """From the server's form."""
        return cls(
            jobs=value["jobs"],
            stored_bytes=value["stored_bytes"],
            active_items=value["active_items"],
            spent=Usage.from_json(value),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job. `counts`: items by state; `total`: items known so far, all of them once `planned`; `progress` 0 to 1."""

    id: str
    kind: str
    state: str
    priority: str
    parameters: Json
    source: Json
    metadata: Json
    counts: Mapping[str, int]
    total: int
    planned: bool
    progress: float
    version: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    parent_id: str | None = None
    schedule_id: str | None = None
    schedule_run_id: str | None = None
    webhook_endpoint_id: str | None = None
    eta_seconds: float | None = None
    queue_position: int | None = None
    usage: Usage = field(default_factory=Usage)
    errors: Mapping[str, int] = field(default_factory=dict)
    error: Failure | None = None

    @property
    def finished(self) -> bool:
        """True once nothing changes any more."""
        return self.state in TERMINAL

    @property
    def done(self) -> int:
        """Items that have ended, in any way."""
        return sum(self.counts.get(state, 0) for state in ("succeeded", "failed", "cancelled"))

    @classmethod
    def from_json(cls, value: Json) -> Job:
        """From the server's form."""
        return cls(
            id=value["id"],
            kind=value["kind"],
            state=value["state"],
            priority=value["priority"],
            parameters=value["parameters"],
            source=value["source"],
            metadata=value["metadata"],
            counts=value["counts"],
            total=value["total"],
            planned=value["planned"],
            progress=value["progress"],
            version=value["version"],
            created_at=datetime.fromisoformat(value["created_at"]),
            started_at=_time(value, "started_at"),
            finished_at=_time(value, "finished_at"),
            deadline_at=_time(value, "deadline_at"),
            cancel_requested_at=_time(value, "cancel_requested_at"),
            parent_id=value.get("parent_id"),
            schedule_id=value.get("schedule_id"),
            schedule_run_id=value.get("schedule_run_id"),
            webhook_endpoint_id=value.get("webhook_endpoint_id"),
            eta_seconds=value.get("eta_seconds"),
            queue_position=value.get("queue_position"),
            usage=Usage.from_json(value.get("usage") or {}),
            errors=value.get("errors") or {},
            error=_maybe(value, "error", Failure.from_json),
        )


@dataclass(frozen=True, kw_only=True)
class Item:
    """One medium with its questions. `page` is 1-based, None where the medium has no pages."""

    job_id: str
    seq: int
    name: str
    page: int | None
    state: str
    attempt: int
    document: int
    metadata: Json
    media: tuple[str, ...] = ()
    tiles: int | None = None
    error: Failure | None = None
    text: str | None = None
    flags: tuple[str, ...] = ()
    created_at: datetime | None = None
    prepared_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @classmethod
    def from_json(cls, value: Json) -> Item:
        """From the server's form."""
        return cls(
            job_id=value["job_id"],
            seq=value["seq"],
            name=value["name"],
            page=value.get("page"),
            state=value["state"],
            attempt=value["attempt"],
            document=value["document"],
            metadata=value.get("metadata") or {},
            media=tuple(value.get("media") or ()),
            tiles=value.get("tiles"),
            error=_maybe(value, "error", Failure.from_json),
            text=value.get("text"),
            flags=tuple(value.get("flags") or ()),
            created_at=_time(value, "created_at"),
            prepared_at=_time(value, "prepared_at"),
            started_at=_time(value, "started_at"),
            finished_at=_time(value, "finished_at"),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an item answered. `error` is set, and `text` empty, for a failed item (`results(..., include="all")`)."""

    job_id: str
    seq: int
    name: str
    page: int | None
    document: int
    state: str
    attempt: int
    text: str
    output: Json
    metadata: Json
    flags: tuple[str, ...] = ()
    finish_reason: str | None = None
    media_hash: str | None = None
    mean_logprob: float | None = None
    usage: Usage = field(default_factory=Usage)
    provenance: Json = field(default_factory=dict)
    error: Failure | None = None

    @classmethod
    def from_json(cls, value: Json) -> Result:
        """From the server's form."""
        return cls(
            job_id=value["job_id"],
            seq=value["seq"],
            name=value["name"],
            page=value.get("page"),
            document=value["document"],
            state=value["state"],
            attempt=value["attempt"],
            text=value.get("text") or "",
            output=value.get("output") or {},
            metadata=value.get("metadata") or {},
            flags=tuple(value.get("flags") or ()),
            finish_reason=value.get("finish_reason"),
            media_hash=value.get("media_hash"),
            mean_logprob=value.get("mean_logprob"),
            usage=Usage.from_json(value.get("usage") or {}),
            provenance=value.get("provenance") or {},
            error=_maybe(value, "error", Failure.from_json),
        )


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export of results. `url`: the folder it is written to, None in the installation's own store."""

    id: str
    job_id: str
    state: str
    url: str | None
    format: str
    compression: str
    shards: int
    rows: int
    errors: int
    bytes: int
    total: int
    progress: float
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: Failure | None = None

    @property
    def finished(self) -> bool:
        """True once nothing changes any more; it is whole where `state` is `succeeded`."""
        return self.state in {"succeeded", "failed", "cancelled"}

    @classmethod
    def from_json(cls, value: Json) -> Export:
        """From the server's form."""
        return cls(
            id=value["id"],
            job_id=value["job_id"],
            state=value["state"],
            url=value.get("url"),
            format=value["format"],
            compression=value["compression"],
            shards=value["shards"],
            rows=value["rows"],
            errors=value["errors"],
            bytes=value["bytes"],
            total=value["total"],
            progress=value["progress"],
            created_at=datetime.fromisoformat(value["created_at"]),
            started_at=_time(value, "started_at"),
            finished_at=_time(value, "finished_at"),
            error=_maybe(value, "error", Failure.from_json),
        )


@dataclass(frozen=True, kw_only=True)
class File:
    """An uploaded file. Times are seconds since 1970 on the wire."""

    id: str
    filename: str
    purpose: str
    size: int
    status: str
    created_at: datetime
    expires_at: datetime | None = None

    @classmethod
    def from_json(cls, value: Json) -> File:
        """From the server's form (OpenAI's file object)."""
        expires = value.get("expires_at")
        return cls(
            id=value["id"],
            filename=value["filename"],
            purpose=value["purpose"],
            size=value["bytes"],
            status=value["status"],
            created_at=_unix(value["created_at"]),
            expires_at=None if expires is None else _unix(expires),
        )


@dataclass(frozen=True, kw_only=True)
class KindInfo:
    """A job kind: the media it reads, the JSON schema of its parameters, worked examples."""

    name: str
    title: str
    media: tuple[str, ...]
    parameters: Json
    examples: tuple[Json, ...]

    @classmethod
    def from_json(cls, value: Json) -> KindInfo:
        """From the server's form."""
        return cls(
            name=value["name"],
            title=value["title"],
            media=tuple(value["media"]),
            parameters=value["parameters"],
            examples=tuple(value["examples"]),
        )


def _unix(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def _time(value: Json, name: str) -> datetime | None:
    text = value.get(name)
    return None if text is None else datetime.fromisoformat(text)


def _maybe(value: Json, name: str, read: Callable[[Json], T]) -> T | None:
    inner = value.get(name)
    return None if inner is None else read(inner)
