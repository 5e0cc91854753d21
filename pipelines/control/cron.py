"""When a schedule is due: cron in a time zone, and what becomes of times that were missed. Pure: no clock, no database.

Five fields, as Debian's cron has them, by the zone's wall clock. At the two changes of a year:

- A fixed time (neither minute nor hour begins with `*`) comes once a day, whatever the day. One that the clock skips
  comes at the first minute that exists: `30 2 * * *` in Europe/Berlin at 03:00 on the last Sunday of March. One that
  the clock shows twice comes the first time: 02:30 summer time in October.
- A step (`0 * * * *`, `*/15 * * * *`) follows real time: 23 or 25 hours have 23 or 25 runs, a skipped hour has none.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import takewhile

from cronsim import CronSim, CronSimError

from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.schedules import CatchUp

FIELDS = 5
MOST_DUE = 50_000
"""Times looked at in one go after a long absence: a month of every minute. Older ones count as missed for good."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A cron expression in a zone, checked by `timing`."""

    cron: str
    zone: zoneinfo.ZoneInfo

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The times after `moment` (aware), in order, without end, in the zone's own offsets."""
        last = moment
        try:
            for local in CronSim(self.cron, moment.astimezone(self.zone)):
                # Inside a doubled hour the library may name the first occurrence again, which is over.
                if local.timestamp() > last.timestamp():
                    last = local
                    yield local
        except (OverflowError, ValueError):  # the end of the calendar, which the library says in either way
            return

    def next(self, moment: datetime) -> datetime | None:
        """The first time after `moment`, in UTC; None where there is none in fifty years."""
        found = next(self.after(moment), None)
        return None if found is None else found.astimezone(UTC)


@dataclass(frozen=True, kw_only=True)
class MissedRule:
    """What a schedule says about times that were missed: later than `grace` seconds is missed, earlier is on time."""

    catch_up: CatchUp
    grace: float
    limit: int


@dataclass(frozen=True, kw_only=True)
class Due:
    """What is due. `fire`: times in order, each with whether it is late; `missed`: times that are left out for good."""

    fire: tuple[tuple[datetime, bool], ...]
    missed: tuple[datetime, ...]


def timing(cron: str, timezone: str) -> Timing:
    """Check both. Raises `InvalidParameter` with what to change."""
    if timezone not in _zones():
        raise InvalidParameter(f"{timezone!r} is no IANA time zone; write one such as Europe/Berlin", param="timezone")
    found = Timing(cron=" ".join(cron.split()), zone=zoneinfo.ZoneInfo(timezone))
    if len(found.cron.split()) != FIELDS:
        raise InvalidParameter(
            "cron takes five fields (minute, hour, day of month, month, day of week), such as 30 2 * * *", param="cron"
        )
    try:
        never = found.next(datetime(2024, 1, 1, tzinfo=UTC)) is None
    except CronSimError as error:
        raise InvalidParameter(f"cron: {str(error).lower()} in {found.cron!r}", param="cron") from error
    if never:
        raise InvalidParameter(f"{found.cron!r} names no day that ever comes", param="cron")
    return found


def due_until(found: Timing, first: datetime, now: datetime) -> tuple[datetime, ...]:
    """The times from `first` (a time of the schedule, due) to `now`, in UTC, at most `MOST_DUE`."""
    times = [first.astimezone(UTC)]
    for local in takewhile(lambda time: time <= now, found.after(first)):
        if len(times) == MOST_DUE:
            break
        times.append(local.astimezone(UTC))
    return tuple(times)


def sort_out(times: Sequence[datetime], now: datetime, rule: MissedRule) -> Due:
    """Which of the times that have come are fired. Those within the grace always are, each of them.

    `last` makes up for the last missed one only where none is on time: the newest run does what is to be done.
    """
    grace = timedelta(seconds=rule.grace)
    on_time = [time for time in times if now - time <= grace]
    late = [time for time in times if now - time > grace]
    match rule.catch_up:
        case CatchUp.NONE:
            kept = []
        case CatchUp.LAST:
            kept = [] if on_time else late[-1:]
        case CatchUp.ALL:
            kept = late[-rule.limit :]
    missed = late[: len(late) - len(kept)]
    return Due(fire=(*((time, True) for time in kept), *((time, False) for time in on_time)), missed=tuple(missed))


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
