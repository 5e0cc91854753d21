"""Dates in a scheduled source's URLs: `s3://scans/{date:%Y/%m/%d}/`.

    {date}          the day of the scheduled time in the schedule's zone, 2026-01-31
    {yesterday}     the day before it
    {tomorrow}      the day after it
    {date:%Y/%m}    in another form; so for the other two. %Y %y %m %d %j %H %M %G %V %u %%

The scheduled time counts, not the moment of firing: a run that is made up for a day later reads what it would have
read. Other braces stay what they are to a glob, alternatives: `*.{png,jpg}`; a single word in braces that is none of
the above is refused, for it is a misspelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pipelines.jobs.errors import InvalidParameter

_DAYS = {"date": 0, "yesterday": -1, "tomorrow": 1}
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.+-]*)(?::([^{}]*))?\}")
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
# Only what says the same in every locale.
_ALLOWED = frozenset("YymdjHMGVu%")


def fill(url: str, at: datetime, *, param: str = "url") -> str:
    """`url` with its dates, `at` being the scheduled time in the schedule's zone. Raises `InvalidParameter`."""

    def value(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        if name not in _DAYS:
            raise InvalidParameter(
                f"{match[0]} is no placeholder; there are {{date}}, {{yesterday}} and {{tomorrow}}, "
                "each with a form if you like, such as {date:%Y/%m/%d}",
                param=param,
            )
        # Whole days by the calendar, so that a day of 23 hours moves nothing; the hour stays the scheduled one.
        day = at.replace(tzinfo=None) + timedelta(days=_DAYS[name])
        return _formed(day, "%Y-%m-%d" if form is None else form, match[0], param)

    return _PLACEHOLDER.sub(value, url)


def fill_source(source: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """A normalised source with the dates in its addresses filled in; uploaded files have none. Raises as `fill`."""
    filled = dict(source)
    if "url" in filled:
        filled["url"] = fill(str(filled["url"]), at, param="source.url")
    if "media" in filled:
        filled["media"] = [
            {**entry, "url": fill(str(entry["url"]), at, param=f"source.media.{number}.url")}
            for number, entry in enumerate(filled["media"])
        ]
    return filled


def _formed(day: datetime, form: str, shown: str, param: str) -> str:
    for directive in _DIRECTIVE.findall(form):
        if directive not in _ALLOWED or not directive:
            known = " ".join(f"%{letter}" for letter in "YymdjHMGVu%")
            raise InvalidParameter(f"{shown}: %{directive} is not among {known}", param=param)
    # %Y is not padded below the year 1000, nor need it be.
    return day.strftime(form)
