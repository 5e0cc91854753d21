from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.errors import InvalidParameter, SourceDisabled, SourceForbidden
from pipelines.steps.access import (
    AccessRules,
    HttpsAddress,
    S3Address,
    UploadAddress,
    allow,
    bucket_allowed,
    parse_url,
)

FILE = uuid.UUID(int=7)


def test_the_three_sorts_of_addresses() -> None:
    assert parse_url("s3://scans/2026/a.pdf") == S3Address(bucket="scans", key="2026/a.pdf")
    assert parse_url("https://example.com/a.png") == HttpsAddress(url="https://example.com/a.png")
    assert parse_url(f"upload:{FILE}") == parse_url(f"file-{FILE.hex}") == UploadAddress(file_id=FILE)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "file:///etc/passwd",
        "ftp://host/a",
        "data:image/png;base64,AA",
        "s3://UPPER/a",
        "s3://b/a",
        "s3://scans/a/../b",
        "s3://scans/a\nb",
        "s3://scans/" + "a" * 2000,
        "upload:not-an-id",
        "https://example.com/" + "a" * 9000,
    ],
)
def test_anything_else_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_url(url)
    assert caught.value.param == "url"


@pytest.mark.parametrize(
    ("allowed", "key", "expected"),
    [
        (("scans",), "anything", True),
        (("scans/2026/",), "2026/a.png", True),
        (("scans/2026/",), "2025/a.png", False),
        (("scans/2026/",), "2026", False),
        (("scans-old",), "a", False),
        ((), "a", False),
    ],
)
def test_buckets_and_prefixes(allowed: tuple[str, ...], key: str, expected: bool) -> None:
    assert bucket_allowed("scans", key, allowed) is expected


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_allowed_prefix_never_opens_keys_outside_of_it(prefix: str, key: str) -> None:
    assert bucket_allowed("scans", key, [f"scans/{prefix}"]) is key.startswith(prefix)


def test_rules_are_applied() -> None:
    rules = AccessRules(buckets=("scans",), https=False)
    allow(S3Address(bucket="scans", key="a"), rules)
    allow(UploadAddress(file_id=FILE), rules)
    with pytest.raises(SourceForbidden):
        allow(S3Address(bucket="others", key="a"), rules)
    with pytest.raises(SourceDisabled):
        allow(HttpsAddress(url="https://example.com"), rules)
    allow(HttpsAddress(url="https://example.com"), AccessRules(buckets=(), https=True))
    with pytest.raises(SourceForbidden, match="https"):
        allow(HttpsAddress(url="http://example.com"), AccessRules(buckets=(), https=True))
