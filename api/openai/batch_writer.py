"""Writes the files of batches that have ended, beside the requests: every replica looks, one has each batch.

The files are of this surface alone (they hold HTTP statuses), so the api writes them, and not whoever ends the job.
Nobody has to ask: the job's end has left a row, and only the transaction that deletes it sends the batch's event.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from api.openai import batch_output
from api.services import Services
from pipelines.control import query
from pipelines.jobs.errors import BatchsightError
from pipelines.store import batch_endings
from pipelines.store.batch_endings import BatchEnding

_log = structlog.get_logger(__name__)

LEASE = 60.0
"""Seconds; renewed with each page of results."""
IDLE = 1.0
"""Seconds between looks at a table that is empty most of the time."""
_PAUSE = 5.0  # after a failure


async def write_forever(services: Services) -> None:
    """Until the server stops."""
    while not services.stopping.is_set():
        try:
            found = await services.transact(lambda conn: batch_endings.claim(conn, lease=LEASE))
            if found is None:
                await _pause(services, IDLE)
            else:
                await services.in_thread(lambda ending=found: write(services, ending))  # type: ignore[misc]  # mypy cannot infer a lambda's default
        except BatchsightError as error:
            _log.warning("batch_output_failed", code=error.code, error=error.message)  # its lease runs out
            await _pause(services, _PAUSE)
        except Exception:  # noqa: BLE001 - a defect in one batch must not end the others' writing; logged each time
            _log.exception("batch_output_raised")
            await _pause(services, _PAUSE)


def write(services: Services, ending: BatchEnding) -> None:
    """Write what the batch lacks, then send its event. Repeatable; without effect once the lease is lost."""
    with services.database.begin() as conn:
        view = query.read_job(conn, ending.tenant_id, ending.job_id)
        lacking = () if view is None or batch_output.outlived(view) else batch_output.missing(conn, view)
    for which in lacking:
        if view is None or not batch_output.write(services, view, which, renew=lambda: _renew(services, ending)):
            return
    with services.database.begin() as conn:
        batch_endings.release(conn, ending)


async def _pause(services: Services, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(services.stopping.wait(), seconds)


def _renew(services: Services, ending: BatchEnding) -> bool:
    if services.stopping.is_set():
        return False  # another replica begins anew once the lease has run out
    with services.database.begin() as conn:
        return batch_endings.renew(conn, ending, lease=LEASE)
