from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.jobs.errors import StoreUnavailable
from pipelines.steps.abort import AbortReason
from workers.leases import Key, LeaseKeeper

JOB = uuid.UUID(int=1)


@dataclass
class Answer:
    kept: frozenset[Key] = frozenset()
    cancelled: frozenset[Key] = frozenset()


@dataclass
class Database:
    """Remembers what was asked and answers as told: all kept, unless said otherwise."""

    lost: set[Key] = field(default_factory=set)
    cancelled: set[Key] = field(default_factory=set)
    down: bool = False
    asked: list[frozenset[Key]] = field(default_factory=list)

    def beat(self, held: Sequence[Key]) -> Answer:
        if self.down:
            raise StoreUnavailable("away")
        self.asked.append(frozenset(held))
        return Answer(frozenset(held) - self.lost, frozenset(held) & self.cancelled)


def item(seq: int, attempt: int = 1) -> Key:
    return (JOB, seq, attempt)


def keeper(database: Database) -> LeaseKeeper:
    return LeaseKeeper(database.beat, interval=3600)


def test_one_beat_covers_everything_that_is_held() -> None:
    database = Database()
    leases = keeper(database)
    with leases.hold(item(1)), leases.hold(item(2)):
        leases.beat_once()
        assert leases.held() == 2
    leases.beat_once()
    leases.close()
    assert database.asked == [frozenset({(JOB, 1, 1), (JOB, 2, 1)})]
    assert leases.held() == 0


def test_a_lost_lease_aborts_its_item_alone() -> None:
    database = Database(lost={(JOB, 1, 1)})
    leases = keeper(database)
    with leases.hold(item(1)) as lost, leases.hold(item(2)) as kept:
        leases.beat_once()
        assert lost.reason is AbortReason.LEASE_LOST
        assert kept.reason is None
    leases.close()


def test_a_cancelled_job_aborts_at_the_beat() -> None:
    database = Database(cancelled={(JOB, 1, 1)})
    leases = keeper(database)
    called: list[bool] = []
    with leases.hold(item(1)) as abort:
        abort.on_fire(lambda: called.append(True))
        leases.beat_once()
        assert abort.reason is AbortReason.CANCELLED
    leases.close()
    assert called == [True]


def test_an_outage_of_the_database_aborts_nothing() -> None:
    database = Database(down=True)
    leases = keeper(database)
    with leases.hold(item(1)) as abort:
        leases.beat_once()
        assert abort.reason is None
    leases.close()


def test_a_hint_brings_the_beat_forward() -> None:
    database = Database(cancelled={(JOB, 1, 1)})
    leases = keeper(database)
    with leases.hold(item(1)) as abort:
        leases.check_now()
        for _ in range(500):
            if abort.reason is not None:
                break
            time.sleep(0.01)
        assert abort.reason is AbortReason.CANCELLED
    leases.close()


def test_shutdown_fires_every_abort_and_the_first_reason_stays() -> None:
    leases = keeper(Database())
    with leases.hold(item(1)) as abort:
        leases.abort_all(AbortReason.SHUTDOWN)
        abort.fire(AbortReason.CANCELLED)
        assert abort.reason is AbortReason.SHUTDOWN
    leases.close()
