from __future__ import annotations

import pytest

from pipelines.control.exports.target import ExportRules, S3Target, target_of
from pipelines.jobs.errors import ExportForbidden, InvalidParameter

RULES = ExportRules(buckets=("out", "shared/acme"), blob_url="s3://batchsight/store")


def place(url: str, *, buckets: tuple[str, ...] | None = None, blob_url: str = RULES.blob_url) -> S3Target:
    return target_of(url, tenant_buckets=buckets, rules=ExportRules(buckets=RULES.buckets, blob_url=blob_url))


@pytest.mark.parametrize(
    ("url", "prefix"),
    [("s3://out", ""), ("s3://out/", ""), ("s3://out/2026", "2026/"), ("s3://out/2026/a/", "2026/a/")],
)
def test_a_bucket_on_the_list_is_open_with_all_its_prefixes(url: str, prefix: str) -> None:
    assert place(url) == S3Target(bucket="out", prefix=prefix)


@pytest.mark.parametrize("url", ["s3://shared/acme", "s3://shared/acme/", "s3://shared/acme/2026/"])
def test_a_prefix_on_the_list_opens_what_lies_below(url: str) -> None:
    assert place(url).prefix.startswith("acme/")


@pytest.mark.parametrize(
    "url", ["s3://shared/", "s3://shared/acme-two/", "s3://shared/ac/", "s3://scans/", "s3://outer/"]
)
def test_nothing_else_is_open(url: str) -> None:
    with pytest.raises(ExportForbidden):
        place(url)


def test_a_tenants_own_list_stands_instead_of_the_installations() -> None:
    assert place("s3://mine/x/", buckets=("mine",)).bucket == "mine"
    with pytest.raises(ExportForbidden):
        place("s3://out/", buckets=("mine",))
    with pytest.raises(ExportForbidden):
        place("s3://out/", buckets=())


@pytest.mark.parametrize("url", ["s3://batchsight/", "s3://batchsight/store/", "s3://batchsight/store/packs/"])
def test_the_installations_own_store_is_never_written_to_by_an_address(url: str) -> None:
    with pytest.raises(ExportForbidden):
        place(url, buckets=("batchsight",))
    with pytest.raises(ExportForbidden):
        place(url, buckets=("batchsight",), blob_url="s3://batchsight")


def test_a_prefix_beside_the_installations_own_is_as_good_as_any() -> None:
    assert place("s3://batchsight/other/", buckets=("batchsight/other",)).prefix == "other/"


@pytest.mark.parametrize(
    "url", ["s3://out/a/../b/", "s3://out/a//b", "s3://out/*.md", "https://out/", "s3://out/" + "x" * 600, "s3://o/"]
)
def test_an_address_that_is_no_prefix_is_refused_with_a_word(url: str) -> None:
    with pytest.raises(InvalidParameter):
        place(url)
