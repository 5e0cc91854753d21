"""PAGINATE: how many items a document is. A PDF or TIFF becomes one item a page, anything else one item."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from pipelines.jobs.errors import UnsupportedMedia
from pipelines.jobs.models import Document, JobSpec, MediaRef
from pipelines.jobs.outcomes import Failed, Repair, Retry
from pipelines.jobs.retry import after_failure
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass
from pipelines.media.pages import DocumentInfo
from pipelines.steps.prepare import SourceFile, class_of

_log = structlog.get_logger(__name__)


class Probe(Protocol):
    """The decoder pool's cheap look (`pipelines.media.isolate.Decoder`)."""

    def probe(self, path: Path) -> DocumentInfo:
        """What a file is and how many pages it has."""


@dataclass(frozen=True, kw_only=True)
class Paged:
    """`pages`: items to make, or None for a single item without a page number. `versions`: what was read."""

    pages: int | None
    versions: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class PaginateTools:
    """What PAGINATE needs."""

    fetch: Callable[[JobSpec, MediaRef], AbstractContextManager[SourceFile]]
    decoder: Probe
    uniform: Callable[[float, float], float] = random.uniform


def paginate(document: Document, spec: JobSpec, tools: PaginateTools, *, fails: int) -> Paged | Retry | Failed:
    """Count the pages of one document. Every failure ends in an outcome."""
    try:
        (media,) = document.media
        with tools.fetch(spec, media) as file:
            info = tools.decoder.probe(file.path)
            versions = (file.version,)
        kind = registry.get(spec.kind)
        media_class = class_of(info.type)
        if media_class not in kind.media:
            reads = ", ".join(sorted(kind.media - {MediaClass.NONE}))
            raise UnsupportedMedia(f"{document.name} is a {media_class}, but {kind.name} reads: {reads}")
        return Paged(pages=info.pages if media_class is MediaClass.DOCUMENT else None, versions=versions)
    except Exception as error:  # noqa: BLE001 - the boundary: any failure becomes a typed outcome
        _log.warning("paginate_failed", job_id=str(spec.job_id), doc=document.doc, exc_info=error)
        outcome = after_failure(error, fails=fails, uniform=tools.uniform)
        if isinstance(outcome, Repair):  # nothing of a document is derived, so there is nothing to repair
            return Failed(code=outcome.code, message=outcome.message)
        return outcome
