"""When schedules are due, through both changes of a year, and what becomes of missed times."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.control.cron import MOST_DUE, MissedRule, Timing, due_until, sort_out, timing
from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.schedules import CatchUp

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
AUTUMN = datetime(2026, 10, 24, 12, tzinfo=BERLIN)


def first(cron: str, start: datetime, count: int, zone: str = "Europe/Berlin") -> list[str]:
    found = timing(cron, zone).after(start)
    return [time.strftime("%m-%d %H:%M%z") for time in itertools.islice(found, count)]


def test_a_fixed_time_in_the_missing_hour_comes_at_the_first_minute_that_exists() -> None:
    assert first("30 2 * * *", SPRING, 2) == ["03-29 03:00+0200", "03-30 02:30+0200"]


def test_a_fixed_time_in_the_doubled_hour_comes_once_the_first_time() -> None:
    assert first("30 2 * * *", AUTUMN, 2) == ["10-25 02:30+0200", "10-26 02:30+0100"]


def test_the_second_pass_of_the_doubled_hour_brings_no_second_run() -> None:
    second_pass = datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    assert first("30 2 * * *", second_pass, 1) == ["10-26 02:30+0100"]


def test_two_fixed_times_in_the_missing_hour_are_one_run() -> None:
    assert first("0,30 2 * * *", SPRING, 2) == ["03-29 03:00+0200", "03-30 02:00+0200"]


def test_hourly_follows_real_time_through_both_changes() -> None:
    midnight = datetime(2026, 3, 28, 23, tzinfo=BERLIN)
    assert first("0 * * * *", midnight, 4) == [
        "03-29 00:00+0100",
        "03-29 01:00+0100",
        "03-29 03:00+0200",
        "03-29 04:00+0200",
    ]
    midnight = datetime(2026, 10, 24, 23, tzinfo=BERLIN)
    assert first("0 * * * *", midnight, 5)[2:] == ["10-25 02:00+0200", "10-25 02:00+0100", "10-25 03:00+0100"]


def test_midnight_comes_every_day_of_a_year_in_every_sort_of_zone() -> None:
    # Beirut changes at midnight itself, Lord Howe by half an hour, Kathmandu never.
    for name in ("Europe/Berlin", "America/New_York", "Asia/Beirut", "Australia/Lord_Howe", "Asia/Kathmandu"):
        times = list(itertools.islice(timing("0 0 * * *", name).after(datetime(2025, 12, 31, 12, tzinfo=UTC)), 365))
        assert [time.date() for time in times] == [times[0].date() + timedelta(days=n) for n in range(365)]
        skipped = [time for time in times if time.hour]
        assert len(skipped) == (1 if name == "Asia/Beirut" else 0)


@pytest.mark.parametrize(
    ("cron", "zone", "param"),
    [
        ("30 2 * *", "UTC", "cron"),
        ("0 30 2 * * *", "UTC", "cron"),
        ("60 2 * * *", "UTC", "cron"),
        ("x", "UTC", "cron"),
        ("", "UTC", "cron"),
        ("0 0 30 2 *", "UTC", "cron"),
        ("0 0 31 4,6 *", "UTC", "cron"),
        ("30 2 * * *", "Europe/Atlantis", "timezone"),
        ("30 2 * * *", "../../etc/passwd", "timezone"),
        ("30 2 * * *", "", "timezone"),
    ],
)
def test_what_no_schedule_can_be_is_refused_by_its_field(cron: str, zone: str, param: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        timing(cron, zone)
    assert refused.value.param == param


FIELD = {
    "minute": st.sampled_from(["*", "0", "30", "*/7", "0,30", "10-20/5"]),
    "hour": st.sampled_from(["*", "2", "*/2", "1-3", "0", "23"]),
    "day": st.sampled_from(["*", "1", "31", "L", "25-31"]),
    "month": st.sampled_from(["*", "3", "10", "MAR,OCT"]),
    "weekday": st.sampled_from(["*", "SUN", "0", "1-5", "SUN#L", "7"]),
}
CRON = st.tuples(*(field for name, field in FIELD.items() if name != "weekday")).map(" ".join)
ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "UTC"])
MOMENTS = st.integers(0, 3 * 365 * 24 * 60).map(
    lambda minutes: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)


@given(cron=CRON, weekday=st.sampled_from(["*", "SUN", "1-5", "7"]), zone=ZONES, start=MOMENTS)
@settings(deadline=None)
def test_times_grow_strictly_and_are_what_the_zones_wall_clock_says(
    cron: str, weekday: str, zone: str, start: datetime
) -> None:
    try:
        found = timing(f"{cron} {weekday}", zone)
    except InvalidParameter:
        return  # the 31st of a month without one
    times = list(itertools.islice(found.after(start), 12))
    instants = [start.timestamp(), *(time.timestamp() for time in times)]
    assert all(one < other for one, other in itertools.pairwise(instants))
    minutes, hours = cron.split()[:2]
    for time in times:
        assert time.tzinfo is found.zone
        assert (time.second, time.microsecond) == (0, 0)
        if minutes == "30" and hours == "2":
            exists = time.replace(hour=2, minute=30, fold=0)
            real = exists.astimezone(UTC).astimezone(found.zone) == exists
            assert (time.hour, time.minute) == (2, 30) if real else (time.hour, time.minute) > (2, 30)


@given(cron=CRON, zone=ZONES, start=MOMENTS)
@settings(deadline=None)
def test_the_next_time_is_the_same_from_wherever_one_looks(cron: str, zone: str, start: datetime) -> None:
    try:
        found = timing(f"{cron} *", zone)
    except InvalidParameter:
        return
    one, other = itertools.islice(found.after(start), 2)
    assert found.next(one) == other
    assert found.next(one - timedelta(seconds=1)) == one


@given(text=st.text(max_size=30), zone=st.text(max_size=30))
def test_any_text_is_a_schedule_or_refused(text: str, zone: str) -> None:
    with pytest.raises(InvalidParameter):
        timing(text, zone)  # no such zone is ever drawn


@given(text=st.text("0123456789*/,-#LWMONSUJAN ", min_size=5, max_size=20))
@settings(deadline=None)
def test_any_expression_has_a_next_time_or_is_refused(text: str) -> None:
    try:
        found = timing(text, "Europe/Berlin")
    except InvalidParameter:
        return
    assert found.next(SPRING) is not None


NIGHTLY = timing("30 2 * * *", "Europe/Berlin")
NOON = datetime(2026, 6, 10, 10, tzinfo=UTC)


def rule(catch_up: CatchUp, *, grace: float = 60, limit: int = 10) -> MissedRule:
    return MissedRule(catch_up=catch_up, grace=grace, limit=limit)


def nights(*days: int) -> tuple[datetime, ...]:
    return tuple(datetime(2026, 6, day, 0, 30, tzinfo=UTC) for day in days)


@pytest.mark.parametrize(
    ("catch_up", "fired", "missed"),
    [
        (CatchUp.NONE, (), nights(7, 8, 9, 10)),
        (CatchUp.LAST, nights(10), nights(7, 8, 9)),
        (CatchUp.ALL, nights(7, 8, 9, 10), ()),
    ],
)
def test_missed_nights(catch_up: CatchUp, fired: tuple[datetime, ...], missed: tuple[datetime, ...]) -> None:
    due = sort_out(due_until(NIGHTLY, nights(7)[0], NOON), NOON, rule(catch_up))
    assert tuple(time for time, _ in due.fire) == fired
    assert all(late for _, late in due.fire)
    assert due.missed == missed


def test_all_is_bounded_and_keeps_the_newest() -> None:
    due = sort_out(due_until(NIGHTLY, nights(1)[0], NOON), NOON, rule(CatchUp.ALL, limit=2))
    assert tuple(time for time, _ in due.fire) == nights(9, 10)
    assert due.missed == nights(*range(1, 9))


def test_within_the_grace_a_time_is_on_time_and_stands_for_those_before_it() -> None:
    soon = nights(10)[0] + timedelta(seconds=59)
    for catch_up in (CatchUp.NONE, CatchUp.LAST):
        due = sort_out(due_until(NIGHTLY, nights(8)[0], soon), soon, rule(catch_up))
        assert due.fire == ((nights(10)[0], False),)
        assert due.missed == nights(8, 9)


def test_a_long_absence_is_looked_at_in_bounded_pieces() -> None:
    minutely = timing("* * * * *", "UTC")
    first_due = datetime(2026, 1, 1, tzinfo=UTC)
    times = due_until(minutely, first_due, first_due + timedelta(days=365))
    assert len(times) == MOST_DUE
    assert times[-1] - times[0] == timedelta(minutes=MOST_DUE - 1)


@given(
    count=st.integers(1, 40),
    late=st.integers(0, 3_000),
    catch_up=st.sampled_from(CatchUp),
    grace=st.integers(0, 600),
    limit=st.integers(1, 5),
)
def test_every_due_time_is_fired_or_missed_and_none_is_both(
    count: int, late: int, catch_up: CatchUp, grace: int, limit: int
) -> None:
    minutely: Timing = timing("* * * * *", "UTC")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    now = start + timedelta(minutes=count - 1, seconds=late)
    times = due_until(minutely, start, now)
    due = sort_out(times, now, rule(catch_up, grace=grace, limit=limit))
    fired = [time for time, _ in due.fire]
    assert sorted([*fired, *due.missed]) == list(times)
    assert fired == sorted(fired)
    made_up = [time for time, is_late in due.fire if is_late]
    assert len(made_up) <= {CatchUp.NONE: 0, CatchUp.LAST: 1, CatchUp.ALL: limit}[catch_up]
    assert all(time in fired for time in times if now - time <= timedelta(seconds=grace))
    if catch_up is not CatchUp.NONE:
        assert times[-1] in fired, "the newest time is never lost"
