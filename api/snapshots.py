"""A job as it is polled: its snapshot with headers and body ready, kept for a moment.

An unchanged job is asked for again and again. What one request read serves the others of this process for at most a
second, and not beyond the leader's announcement that the job has changed; a version never goes back. A client that
knows a newer version than the one kept here (from another replica) is answered from the database.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fastapi.responses import JSONResponse

from api import views
from pipelines.control.query import JobView

_MOST = 4_096
KEPT = 1.0
"""Seconds."""
_FRESH = 0.7  # of that time; then one request reads it anew while the others are still served


class Snapshot:
    """One answer to `GET /v1/jobs/{id}`."""

    def __init__(self, view: JobView, *, gpu_second_cost: float) -> None:
        self.view = view
        self.version = view.job.version
        self._gpu_second_cost = gpu_second_cost
        # Weak: what is worked out at reading (the queue position) may differ within a version.
        self.headers = {"ETag": f'W/"{self.version}"', "Cache-Control": "private, no-cache"}
        if not view.job.state.terminal:
            self.headers["Retry-After"] = str(_retry_after(view))

    @cached_property
    def body(self) -> bytes:
        """The JSON, made when first wanted."""
        shown = views.job(self.view, gpu_second_cost=self._gpu_second_cost).model_dump(mode="json")
        return bytes(JSONResponse(shown).body)

    @cached_property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """For ASGI."""
        return [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]

    def matches(self, if_none_match: str | None) -> bool:
        """Whether the client has this version."""
        if if_none_match is None:
            return False
        tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return "*" in tags or f'"{self.version}"' in tags

    def knows(self, if_none_match: str | None) -> bool:
        """False where the client names another version than this one: perhaps a newer one."""
        return if_none_match is None or self.matches(if_none_match)


@dataclass(kw_only=True)
class _Entry:
    """Not served before it has an `until`, only shared."""

    tenant_id: uuid.UUID
    snapshot: Snapshot
    until: float = 0.0
    refresh_at: float = 0.0


class Snapshots:
    """The snapshots of one process. Lives on one event loop."""

    def __init__(
        self, *, gpu_second_cost: float, kept: float = KEPT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gpu_second_cost = gpu_second_cost
        self._kept = kept
        self._clock = clock
        self._found: OrderedDict[uuid.UUID, _Entry] = OrderedDict()
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often something has changed: noted before a read, handed to `keep` after it."""
        return self._changes

    def get(self, tenant_id: uuid.UUID, job_id: uuid.UUID) -> Snapshot | None:
        """The tenant's job, if it was read a moment ago."""
        entry = self._found.get(job_id)
        now = self._clock()
        if entry is None or entry.tenant_id != tenant_id or entry.until <= now:
            return None
        if entry.refresh_at <= now:
            entry.refresh_at = entry.until
            return None
        return entry.snapshot

    def keep(self, view: JobView, *, since: int) -> Snapshot:
        """The snapshot of what was read after `changes` was `since`; served unless something has changed meanwhile.

        Those who read the same version share one object, so its body is made once.
        """
        job = view.job
        before = self._found.get(job.job_id)
        if before is not None and before.snapshot.version == job.version:
            snapshot = before.snapshot
        else:
            snapshot = Snapshot(view, gpu_second_cost=self._gpu_second_cost)
        if before is not None and before.snapshot.version > job.version:
            return snapshot
        entry = _Entry(tenant_id=job.tenant_id, snapshot=snapshot)
        if since == self._changes:
            now = self._clock()
            entry.until, entry.refresh_at = now + self._kept, now + self._kept * _FRESH
        self._found[job.job_id] = entry
        self._found.move_to_end(job.job_id)
        while len(self._found) > _MOST:
            self._found.popitem(last=False)
        return snapshot

    def forget(self, job_id: uuid.UUID | None = None) -> None:
        """This job (None: any job) has changed."""
        self._changes += 1
        if job_id is None:
            self._found.clear()
        else:
            self._found.pop(job_id, None)


def _retry_after(view: JobView) -> int:
    """A tenth of what is left, between one second and half a minute."""
    eta = view.eta_seconds
    return 2 if eta is None else max(1, min(30, math.ceil(eta / 10)))
