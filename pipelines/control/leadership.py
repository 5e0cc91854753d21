"""Who leads: acquire, renew, give back; what the dispatcher's other threads ask before each piece of work.

The epoch is proof only together with `store.leader.check` in the same transaction; `epoch()` merely spares a standby,
or a leader that has lost contact, the useless work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from pipelines.jobs.errors import StoreUnavailable
from pipelines.store import leader
from pipelines.store.leader import Epoch, LeaderLost, Terms
from pipelines.store.session import Database

_log = structlog.get_logger(__name__)


def terms(*, leader_lease: float, item_lease: float) -> Terms:
    """The usual terms. A gap in contact of a quarter of the items' lease restarts the grace: while it was shorter, a
    worker that beats four times a lease has had the time to beat again. Not below two renewals of the leader itself.
    """
    return Terms(lease=leader_lease, grace=item_lease, gap=max(item_lease / 4, leader_lease * 2 / 3))


class Leadership:
    """Call `step` every third of the lease. Thread-safe."""

    def __init__(
        self,
        database: Database,
        holder: str,
        terms: Terms,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._holder = holder
        self._terms = terms
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch: Epoch | None = None
        self._valid_until = 0.0
        self.contact = clock()
        """When the database last answered, by the monotonic clock."""

    @property
    def interval(self) -> float:
        """Seconds between steps."""
        return self._terms.lease / 3

    def epoch(self) -> Epoch | None:
        """The epoch to work under; None for a standby, and for a leader whose lease has run out unrenewed."""
        with self._lock:
            return self._epoch if self._clock() < self._valid_until else None

    def step(self) -> bool:
        """Renew or try to acquire; True while leading. Raises `StoreUnavailable`."""
        asked = self._clock()
        with self._lock:
            epoch = self._epoch
        try:
            with self._database.begin() as conn:
                if epoch is None:
                    epoch = leader.acquire(conn, self._holder, self._terms)
                    if epoch is not None:
                        _log.info("leader_acquired", holder=self._holder, epoch=epoch.number)
                else:
                    leader.renew(conn, epoch)
        except LeaderLost:
            self.lost()
            epoch = None
        except StoreUnavailable:
            _log.warning("leader_has_no_contact", holder=self._holder)
            raise
        with self._lock:
            self._epoch = epoch
            # Counted from before the question: the server's lease cannot end before ours does.
            self._valid_until = asked + self._terms.lease
            self.contact = self._clock()
        return epoch is not None

    def lost(self) -> None:
        """Somebody found that another dispatcher leads."""
        with self._lock:
            if self._epoch is not None:
                _log.warning("leader_lost", holder=self._holder, epoch=self._epoch.number)
            self._epoch = None

    def resign(self) -> None:
        """Give the lead back (shutdown), so that a standby takes over at once."""
        with self._lock:
            epoch, self._epoch = self._epoch, None
        if epoch is None:
            return
        try:
            with self._database.begin() as conn:
                leader.resign(conn, epoch)
        except StoreUnavailable:
            _log.warning("leader_not_resigned", holder=self._holder)  # the lease ends by itself
