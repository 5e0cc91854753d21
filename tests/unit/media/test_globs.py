"""`s3://` addresses, prefixes and globs."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.errors import InvalidParameter
from pipelines.media.globs import check_object_key, expand_braces, parse_s3


@pytest.mark.parametrize(
    ("url", "prefix", "yes", "no"),
    [
        ("s3://bucket/a/b.png", "a/b.png", ["a/b.png"], ["a/b.pngx", "a/bxpng", "a/b.png/c"]),
        ("s3://bucket/scans/", "scans/", ["scans/a", "scans/b/c"], ["scans", "scans/", "scans/b/", "other"]),
        ("s3://bucket", "", ["a", "a/b"], ["a/"]),
        ("s3://bucket/a/*.png", "a/", ["a/x.png", "a/.png"], ["a/b/x.png", "a/x.PNG", "a/x.png "]),
        ("s3://bucket/a/**/*.png", "a/", ["a/x.png", "a/b/x.png", "a/b/c/x.png"], ["ax.png", "b/x.png"]),
        ("s3://bucket/**/x", "", ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
        ("s3://bucket/a**z", "a", ["az", "abz"], ["a", "a/b/z"]),
        ("s3://bucket/a/**", "a/", ["a/b", "a/b/c"], ["a", "ab", "a/"]),
        ("s3://bucket/**/a/**/**/b", "", ["a/b", "x/a/b", "a/y/z/b"], ["a", "b", "a/bx"]),
        ("s3://bucket/p?ge[0-9].t[!x]f", "p", ["page1.tif", "pxge0.tof"], ["p/ge1.tif", "page1.txf", "pagea.tif"]),
        ("s3://bucket/[]]a", "", ["]a"], ["a", "[]]a"]),
        ("s3://bucket/[a^-]", "", ["a", "^", "-"], ["b"]),
        ("s3://bucket/{a,b/c}/*.{png,jpg}", "", ["a/x.png", "b/c/x.jpg"], ["c/x.png", "a/x.gif", "b/x.png"]),
        ("s3://bucket/x{,.bak}", "x", ["x", "x.bak"], ["x.", "x{"]),
        ("s3://bucket/{a,{b,c}d}", "", ["a", "bd", "cd"], ["b", "ad"]),
        ("s3://bucket/a+b(c)$.pdf", "a+b(c)$.pdf", ["a+b(c)$.pdf"], ["aab(c)$.pdf"]),
        ("s3://bucket/ü/*.png", "ü/", ["ü/漢.png"], ["u/x.png"]),
    ],
)
def test_an_address_means_these_keys(url: str, prefix: str, yes: list[str], no: list[str]) -> None:
    pattern = parse_s3(url)
    assert (pattern.bucket, pattern.prefix) == ("bucket", prefix)
    assert [key for key in yes if not pattern.matches(key)] == []
    assert [key for key in no if pattern.matches(key)] == []


def test_one_object_is_told_from_many() -> None:
    assert parse_s3("s3://bucket/a.png").is_object
    assert not any(parse_s3(f"s3://bucket{rest}").is_object for rest in ("", "/", "/a/", "/*.png", "/a{b,c}"))


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket/a",
        "s3:/bucket/a",
        "s3://",
        "s3:///a",
        "s3://UPPER/a",
        "s3://b/a",
        "s3://a..b/a",
        "s3://bucket/../a",
        "s3://bucket/a/./b",
        "s3://bucket/a\x00b",
        "s3://bucket/a\nb",
        "s3://bucket/" + "k" * 1025,
        "s3://bucket/" + "ü" * 513,
        "s3://bucket/\ud800",
        "s3://bucket/a[b",
        "s3://bucket/a[b/c]",
        "s3://bucket/{a,b",
        "s3://bucket/{a}}",
        "s3://bucket/" + "{a,b}" * 7,
    ],
    ids=ascii,
)
def test_a_bad_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_s3(url)
    assert caught.value.param == "url"


def test_every_printable_key_can_be_named() -> None:
    assert check_object_key("a b/ü&?=#%20.pdf") == "a b/ü&?=#%20.pdf"
    with pytest.raises(InvalidParameter):
        check_object_key("")


@given(key=st.text(alphabet="./a\n\x7f\ud800é", min_size=1, max_size=8))
def test_a_key_holds_no_dots_as_a_part_no_control_characters_and_nothing_that_utf_8_cannot_say(key: str) -> None:
    sane = not {".", ".."} & set(key.split("/")) and not {"\n", "\x7f", "\ud800"} & set(key)
    if sane:
        assert check_object_key(key) == key
    else:
        with pytest.raises(InvalidParameter):
            check_object_key(key)


@pytest.mark.parametrize("key", ["a" * 1025, "é" * 513])
def test_a_key_longer_than_s3_takes_is_refused(key: str) -> None:
    assert check_object_key(key[:-1])
    with pytest.raises(InvalidParameter, match="1024 bytes"):
        check_object_key(key)


def test_braces_expand_in_order() -> None:
    assert expand_braces("{a,b}{1,2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("plain") == ["plain"]


SIMPLE = st.text(alphabet="abc*?", max_size=8)


@given(SIMPLE, st.text(alphabet="abc", min_size=1, max_size=8))
def test_without_slashes_it_is_the_shells_glob(pattern: str, key: str) -> None:
    expected = fnmatch.fnmatchcase(key, pattern) if pattern else True
    assert parse_s3(f"s3://bucket/{pattern}").matches(key) == expected


@given(st.text(alphabet="ab/*?[]{},!-", max_size=12), st.text(alphabet="ab/", max_size=12))
def test_what_matches_lies_under_the_prefix(pattern: str, key: str) -> None:
    try:
        parsed = parse_s3(f"s3://bucket/{pattern}")
    except InvalidParameter:
        return
    if parsed.matches(key):
        assert key.startswith(parsed.prefix)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("pattern", "key"),
    [("*a" * 300 + "b", "a" * 1000), ("**/a/" * 100 + "b", "a/" * 500 + "a"), ("*?" * 400, "a" * 100 + "/a")],
    ids=["stars", "parts", "marks"],
)
def test_a_glob_that_invites_backtracking_is_answered(pattern: str, key: str) -> None:
    # Without the care that is taken these would run for longer than anybody waits; they take milliseconds.
    assert not parse_s3(f"s3://bucket/{pattern}").matches(key)
