"""Dates in the addresses of a scheduled source."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.control.placeholders import fill, fill_source
from pipelines.jobs.errors import InvalidParameter

AT = datetime(2026, 1, 1, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    ("url", "filled"),
    [
        ("s3://scans/{date}/", "s3://scans/2026-01-01/"),
        ("s3://scans/{yesterday}/", "s3://scans/2025-12-31/"),
        ("s3://scans/{tomorrow:%d.%m.%y}/", "s3://scans/02.01.26/"),
        ("s3://scans/{date:%Y/%m/%d}/**/*.{png,jpg}", "s3://scans/2026/01/01/**/*.{png,jpg}"),
        ("s3://scans/{yesterday:%G-W%V}/{date:%j}/{date:%H%M}", "s3://scans/2026-W01/001/0230"),
        ("s3://scans/{{date},latest}/", "s3://scans/{2026-01-01,latest}/"),
        ("s3://scans/{date:100%%}/", "s3://scans/100%/"),
        ("s3://scans/{a,b}/{1..3}/", "s3://scans/{a,b}/{1..3}/"),
    ],
)
def test_dates_are_filled_in_and_a_globs_braces_stay(url: str, filled: str) -> None:
    assert fill(url, AT) == filled


@pytest.mark.parametrize("url", ["s3://b/{dtae}/", "s3://b/{date:%A}/", "s3://b/{date:%}/", "s3://b/{date-1}/"])
def test_what_is_misspelt_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        fill(url, AT, param="source.url")
    assert refused.value.param == "source.url"


def test_the_day_before_a_change_of_the_clock_is_the_day_before() -> None:
    monday = datetime(2026, 3, 30, 0, 30, tzinfo=ZoneInfo("Europe/Berlin"))  # 24 hours earlier it was Saturday
    assert fill("{yesterday}", monday) == "2026-03-29"


def test_every_address_of_a_source_is_filled_and_nothing_else() -> None:
    assert fill_source({"type": "prefix", "url": "s3://b/{date}/"}, AT) == {
        "type": "prefix",
        "url": "s3://b/2026-01-01/",
    }
    media = {"type": "media", "media": [{"url": "s3://b/{date}.png", "id": "{date}"}, {"url": "upload:1"}]}
    assert fill_source(media, AT)["media"] == [{"url": "s3://b/2026-01-01.png", "id": "{date}"}, {"url": "upload:1"}]
    assert fill_source({"type": "none"}, AT) == {"type": "none"}
    with pytest.raises(InvalidParameter) as refused:
        fill_source({"type": "media", "media": [{"url": "s3://b/{x}"}]}, AT)
    assert refused.value.param == "source.media.0.url"


@given(url=st.text("{}date:%Ymx,/ ", max_size=40))
def test_any_address_is_filled_or_refused(url: str) -> None:
    try:
        once = fill(url, AT)
    except InvalidParameter:
        return
    if "{" not in once:
        assert fill(once, AT) == once
