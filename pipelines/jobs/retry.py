"""What happens after a failure: a pure function of the error and of how often the item has failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.jobs.errors import BatchsightError, InternalError, RetryClass, WorkerOutOfMemory
from pipelines.jobs.outcomes import Failed, Repair, Retry


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Full jitter between 0 and `base * 2**fails`, never more than `cap` seconds; a class gives up after its count."""

    base: float = 2.0
    cap: float = 300.0
    transient: int = 5
    resource: int = 1


DEFAULT_POLICY = RetryPolicy()


def after_failure(
    error: BaseException, *, fails: int, uniform: Callable[[float, float], float], policy: RetryPolicy = DEFAULT_POLICY
) -> Retry | Failed | Repair:
    """Decide what follows `error` for an item that has failed `fails` times before.

    `uniform(a, b)` is the source of jitter (`random.uniform`), an argument so that the rule stays pure. Foreign
    exceptions count as `InternalError`: transient, and their text is not shown.
    """
    known = _as_known(error)
    match known.retry:
        case RetryClass.PERMANENT:
            return Failed(code=known.code, message=known.message)
        case RetryClass.REPAIR:
            # Uncounted, so never at once: a blob store that damages every pack must not make a busy loop.
            return Repair(code=known.code, message=known.message, delay=uniform(0.0, policy.base))
        case RetryClass.TRANSIENT:
            allowed = policy.transient
        case RetryClass.RESOURCE:
            allowed = policy.resource
    if fails >= allowed:
        return Failed(code=known.code, message=f"{known.message} (gave up after {fails + 1} attempts)")
    ceiling = min(policy.cap, policy.base * 2.0**fails)
    return Retry(code=known.code, message=known.message, delay=uniform(0.0, ceiling))


def _as_known(error: BaseException) -> BatchsightError:
    if isinstance(error, BatchsightError):
        return error
    if isinstance(error, MemoryError):
        return WorkerOutOfMemory("a worker ran out of memory on this item; use fewer tiles or frames")
    return InternalError("an unexpected failure inside the service; it has been logged")
