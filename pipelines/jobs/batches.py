"""How an OpenAI batch ends: one rule, for the answer that shows it and for the event that tells of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from pipelines.jobs.errors import DeadlineExceeded
from pipelines.jobs.states import JobState

_LATE = DeadlineExceeded.code


class BatchEnd(enum.StrEnum):
    """The last status of a batch."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


def batch_end(
    *, refused: bool, state: JobState, error_code: str | None, ended: int, errors: Mapping[str, int]
) -> BatchEnd:
    """The last status of a batch whose job has ended in `state`.

    `refused`: its file was; `ended`: requests that came to an end; `errors`: failed ones by code.
    """
    if refused:
        return BatchEnd.FAILED
    if state is JobState.CANCELLED:
        return BatchEnd.CANCELLED
    if _LATE in errors or error_code == _LATE:
        return BatchEnd.EXPIRED
    return BatchEnd.FAILED if error_code and not ended else BatchEnd.COMPLETED
