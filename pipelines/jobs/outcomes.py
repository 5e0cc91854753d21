"""How a piece of work ends. A step returns one of these; `steps.complete` writes it, fenced by the attempt."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.jobs.models import ItemResult, PackRef


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The item's pixels lie in the blob store."""

    pack: PackRef
    media_hash: str
    versions: tuple[str | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """The item has its answer."""

    result: ItemResult


@dataclass(frozen=True, kw_only=True)
class Retry:
    """A failure that may pass: back one step after `delay` seconds. `counted`: it used up one of the retries."""

    code: str
    message: str
    delay: float
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The tile pack is missing or damaged: back to `pending` after `delay` seconds, uncounted, the pack forgotten."""

    code: str
    message: str
    delay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The item ends with this code; the message is public."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """The job was cancelled while the item ran."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """Given back untouched (shutdown, or the lease was lost while it ran): uncounted."""

    reason: str


Outcome = Prepared | Succeeded | Retry | Repair | Failed | Cancelled | Released
