"""One dispatcher leads, by an expiring row with an epoch that grows at each change of holder.

Every write of the leader begins with `check`, in the same transaction: a leader that was frozen while another took over
finds a higher epoch and stops. It locks nothing for long: a process that freezes inside a transaction is cut off by
the server's idle-in-transaction timeout, the statements of the sweep and the dispatch skip locked rows, and each of
them is guarded by the state it leaves, so the one statement that a frozen leader may still finish does no harm.

**When losses count.** Workers keep their leases by talking to PostgreSQL; while it is away none of them can. The row
therefore holds when a leader last had contact (`contact_at`, whoever led) and from when on expired leases may be swept
(`losses_from`). After a gap in contact longer than `gap` seconds, and for the first leader ever, that is one whole item
lease later, so an outage charges nobody. A standby that takes over within the gap inherits: its predecessor's death
says nothing about the database, and waiting a lease for each of them would only delay recovery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import Connection, text

from pipelines.jobs.errors import BatchsightError, RetryClass

NAME = "dispatcher"

_LOSSES_FROM = """
    CASE WHEN leader.contact_at < now() - make_interval(secs => :gap)
        THEN now() + make_interval(secs => :grace) ELSE leader.losses_from END
"""

# SKIP LOCKED: a row that somebody is writing belongs to somebody who is alive, or is freed by the idle timeout.
_FREE = text("SELECT 1 FROM leader WHERE name = :name AND lease_until < now() FOR UPDATE SKIP LOCKED")
_EXISTS = text("SELECT 1 FROM leader WHERE name = :name")

_FIRST = text("""
INSERT INTO leader (name, holder, epoch, lease_until, losses_from)
VALUES (:name, :holder, 1, now() + make_interval(secs => :lease), now() + make_interval(secs => :grace))
ON CONFLICT (name) DO NOTHING
RETURNING epoch
""")

_TAKE = text(f"""
UPDATE leader SET holder = :holder, epoch = epoch + 1, lease_until = now() + make_interval(secs => :lease),
    losses_from = {_LOSSES_FROM}, contact_at = now()
WHERE name = :name
RETURNING epoch
""")

_RENEW = text(f"""
UPDATE leader SET lease_until = now() + make_interval(secs => :lease), losses_from = {_LOSSES_FROM}, contact_at = now()
WHERE name = :name AND holder = :holder AND epoch = :epoch
""")

_RESIGN = text("UPDATE leader SET lease_until = now() WHERE name = :name AND holder = :holder AND epoch = :epoch")

# A gap that nobody has renewed over yet counts too: the sweep may be the first to reach the server again.
_CHECK = text("""
SELECT losses_from <= now() AND contact_at >= now() - make_interval(secs => :gap) AS counting
FROM leader WHERE name = :name AND holder = :holder AND epoch = :epoch
""")


class LeaderLost(BatchsightError):
    """Another dispatcher leads now."""

    code: ClassVar[str] = "leader_lost"
    retry: ClassVar[RetryClass] = RetryClass.TRANSIENT


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Times in seconds: the leader's own lease, the items' lease (`grace`), and the contact gap that restarts it."""

    lease: float
    grace: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Proof of leadership: named by every write of the leader."""

    holder: str
    number: int
    terms: Terms


def acquire(conn: Connection, holder: str, terms: Terms) -> Epoch | None:
    """Take the lead where nobody holds it; None where somebody does."""
    values = {"name": NAME, "holder": holder, "lease": terms.lease, "grace": terms.grace, "gap": terms.gap}
    if conn.execute(_FREE, values).one_or_none() is not None:
        number = conn.execute(_TAKE, values).scalar_one()
    elif conn.execute(_EXISTS, values).one_or_none() is None:
        number = conn.execute(_FIRST, values).scalar_one_or_none()
    else:
        number = None
    return None if number is None else Epoch(holder=holder, number=number, terms=terms)


def renew(conn: Connection, epoch: Epoch) -> None:
    """Extend the lead, also one that has expired unclaimed. Raises `LeaderLost`."""
    terms = epoch.terms
    values = {**_named(epoch), "lease": terms.lease, "grace": terms.grace, "gap": terms.gap}
    if conn.execute(_RENEW, values).rowcount == 0:
        raise LeaderLost("another dispatcher leads now")


def resign(conn: Connection, epoch: Epoch) -> None:
    """Give the lead back at once (shutdown)."""
    conn.execute(_RESIGN, _named(epoch))


def check(conn: Connection, epoch: Epoch) -> bool:
    """True where expired leases may be swept now. Raises `LeaderLost` where another dispatcher leads."""
    counting = conn.execute(_CHECK, {**_named(epoch), "gap": epoch.terms.gap}).scalar_one_or_none()
    if counting is None:
        raise LeaderLost("another dispatcher leads now")
    return bool(counting)


def _named(epoch: Epoch) -> dict[str, object]:
    return {"name": NAME, "holder": epoch.holder, "epoch": epoch.number}
